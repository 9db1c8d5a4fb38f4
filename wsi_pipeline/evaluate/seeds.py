"""Variation of a model's measures over seeds: the folds of one seed together test every slide once.

The folds of one seed are pooled, except for survival, where risks of two models are not comparable: there the mean over
the folds is used. The performance of the ensemble of all seeds is in ``metrics.csv``.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..concordance import concordance
from ..csvtable import csv_text, format_number, read_csv
from ..project import label_classes
from .metrics import classification_metrics, multilabel_metrics, regression_metrics

COLUMNS = ("model", "measure", "mean", "sd", "seeds", "values")
_MEASURES = {
    "classification": ("auroc", "auprc"),
    "multilabel": ("auroc", "auprc"),
    "regression": ("mae", "r2"),
    "survival": ("concordance",),
}


@dataclass(frozen=True)
class OverSeeds:
    """One measure of one model, with one value per seed."""

    model: str
    measure: str
    values: Mapping[str, float]  # seed -> value

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.values.values())

    @property
    def sd(self) -> float:
        """Sample standard deviation over the seeds; NaN for a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else float("nan")


def over_seeds(predictions: Path, task: str) -> list[OverSeeds]:
    """Measures of every model for each seed.

    Parameters
    ----------
    predictions : Path
        ``train/predictions.csv``; only its test bags are used.
    task : str

    Returns
    -------
    list of OverSeeds
        Without undefined values.
    """
    header, rows = read_csv(predictions)
    classes = [name.removeprefix("prob_") for name in header if name.startswith("prob_")]
    tested: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in (dict(zip(header, cells, strict=True)) for cells in rows):
        if row["part"] == "test":
            pool = row["fold"] if task == "survival" else "all"
            tested[row["model"], row["seed"]][pool].append(row)
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for (model, seed), pools in tested.items():
        measured = [_measures(pool, task, classes) for pool in pools.values()]
        for name in _MEASURES[task]:
            defined = [m[name] for m in measured if not np.isnan(m[name])]
            if defined:
                found[model, name][seed] = statistics.mean(defined)
    return [OverSeeds(model, name, values) for (model, name), values in found.items()]


def seeds_table(found: Sequence[OverSeeds]) -> str:
    """The text of seeds.csv, with ``COLUMNS``."""
    return csv_text(
        COLUMNS,
        [
            [
                one.model,
                one.measure,
                format_number(one.mean),
                format_number(one.sd),
                len(one.values),
                " ".join(map(format_number, one.values.values())),
            ]
            for one in found
        ],
    )


def _measures(rows: Sequence[Mapping[str, str]], task: str, classes: Sequence[str]) -> dict[str, float]:
    if task == "survival":
        risk, time, event = (np.array([float(r[c]) for r in rows]) for c in ("risk", "time", "event"))
        return {"concordance": concordance(time, event > 0, risk)}
    if task == "regression":
        truth, value = (np.array([float(r[c]) for r in rows]) for c in ("label", "value"))
        return regression_metrics(truth, value)
    outcome = np.array([[float(r[f"prob_{c}"]) for c in classes] for r in rows])
    if task == "multilabel":
        present = np.array([[c in label_classes(r["label"]) for c in classes] for r in rows])
        return multilabel_metrics(present, outcome, outcome, classes, bins=1)
    truth = np.array([classes.index(r["label"]) for r in rows], np.int64)
    return classification_metrics(truth, outcome, outcome.argmax(axis=1), classes)
