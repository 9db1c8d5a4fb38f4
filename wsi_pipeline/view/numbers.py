"""What predict and evaluate found, in the words and digits of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..train.table import read_table

_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "accuracy": "Accuracy",
    "base_rate": "Base rate",
    "lift": "AUPRC / base rate",
}


@dataclass(frozen=True)
class Verdict:
    """What one model says of one slide."""

    model: str
    predicted: str
    right: bool | None  # None where the slide has no label that the model knows
    held_out: bool
    of: str  # the class that the probability is of
    probability: str
    percent: float
    threshold_percent: float | None


@dataclass(frozen=True)
class Cell:
    """A number and its interval."""

    value: str
    interval: str


@dataclass(frozen=True)
class Line:
    """One model's metrics, or one map's."""

    name: str
    cells: tuple[Cell, ...]
    slides: int


@dataclass(frozen=True)
class Metrics:
    """The tables of evaluate; empty where it was not run."""

    metric_names: tuple[str, ...] = ()
    metrics: tuple[Line, ...] = ()
    map_names: tuple[str, ...] = ()
    maps: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()


def read_verdicts(path: Path) -> tuple[tuple[str, ...], dict[tuple[str, str], Verdict], str]:
    """Models in order, (slide_id, model) -> what it says, and a line on which probability is shown.

    Of two classes, the last is the positive one and its probability is shown; of more, the predicted class's.
    """
    if not path.exists():
        return (), {}, ""
    header, rows = read_table(path)
    classes = [name.removeprefix("prob_") for name in header if name.startswith("prob_")]
    try:
        found = [_verdict(dict(zip(header, row, strict=True)), classes) for row in rows]
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete it and run `wsi predict` again") from error
    models = tuple(dict.fromkeys(verdict.model for _, verdict in found))
    shown = f"of {classes[-1]}" if len(classes) == 2 else "of the predicted class"
    note = f"Probability {shown}, mean over the models of the ensemble"
    note += "; the line marks the threshold, chosen on validation slides." if len(classes) == 2 else "."
    return models, {(slide_id, verdict.model): verdict for slide_id, verdict in found}, note


def read_metrics(path: Path) -> Metrics:
    """The tables of evaluate's report.json."""
    if not path.exists():
        return Metrics()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        models, maps = data["models"], data["maps"]
        metric_keys = list(dict.fromkeys(name for model in models.values() for name in model["metrics"]))
        map_keys = [name for name in ("auprc", "base_rate", "lift", "auroc") if any(name in m for m in maps)]
        return Metrics(
            tuple(_NAMES.get(name, name) for name in metric_keys),
            tuple(
                Line(name, tuple(_cell(model["metrics"].get(k)) for k in metric_keys), model["n_slides"])
                for name, model in models.items()
            ),
            tuple(_NAMES.get(name, name) for name in map_keys),
            tuple(
                Line(
                    f"{m['model']} {m['method']}: {m['target']}",
                    tuple(_cell(m.get(k)) for k in map_keys),
                    m["n_slides"],
                )
                for m in maps
            ),
            tuple(str(note) for note in data["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run `wsi evaluate` again") from error


def _verdict(row: Mapping[str, str], classes: list[str]) -> tuple[str, Verdict]:
    predicted, label = row["predicted"], row["label"]
    of = classes[-1] if len(classes) == 2 else predicted
    probability = float(row[f"prob_{of}"])
    threshold = float(row["threshold"]) if row["threshold"] and len(classes) == 2 else None
    return row["slide_id"], Verdict(
        model=row["model"],
        predicted=predicted,
        right=predicted == label if label in classes else None,
        held_out=row["held_out"].lower() == "true",
        of=of,
        probability=f"{probability:.3f}",
        percent=round(100 * probability, 1),
        threshold_percent=None if threshold is None else round(100 * threshold, 1),
    )


def _cell(interval: Mapping[str, Any] | None) -> Cell:
    if not interval or interval.get("value") is None:
        return Cell("–", "")
    low, high = interval.get("low"), interval.get("high")
    return Cell(_digits(interval["value"]), "" if low is None or high is None else f"({_digits(low)}–{_digits(high)})")


def _digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
