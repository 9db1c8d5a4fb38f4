"""All slides' measures of explanations as one table: means with intervals over patients, and methods compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from ..config import EvaluateConfig
from ..errors import ArtifactError
from ..files import Provenance, discard, made_path, write_bytes, write_made, write_text
from ..train.table import number, table
from ..types import Float64, Int64
from .bootstrap import Interval, intervals
from .flipping_plot import curves_png
from .overlap import dice_of_others, mean_iou, pixel_accuracy

CSV, MARKDOWN, PICTURE, MATRIX = "explanations.csv", "explanations.md", "explanations.png", "explanations_spearman.csv"
COLUMNS = ("model", "method", "metric", "value", "low", "high", "n_slides", "n_patients", "p_attention", "p_random")
REFERENCES = ("attention", "random")
NAN = float("nan")


class Metric(NamedTuple):
    """A column of the table for people."""

    title: str
    better: str  # ↑, ↓ or → 0; empty: neither


METRICS = {
    "aupc_drop": Metric("AUPC", "↓"),
    "least_drop": Metric("insertion", "↑"),
    "gain_drop": Metric("gain", "↑"),
    "contrast_drop": Metric("AUPC of the logit", "↓"),
    "aupc_replace": Metric("AUPC, replaced", "↓"),
    "least_replace": Metric("insertion, replaced", "↑"),
    "gain_replace": Metric("gain, replaced", "↑"),
    "contrast_replace": Metric("AUPC of the logit, replaced", "↓"),
    "pixel_accuracy": Metric("pixel accuracy", "↑"),
    "miou": Metric("mIoU", "↑"),
    "map": Metric("mAP", "↑"),
    "mf1": Metric("mF1", "↑"),
    "auprc": Metric("AUPRC", "↑"),
    "auroc": Metric("AUROC", "↑"),
    "dice": Metric("Dice", "↑"),
    "pointing": Metric("pointing game", "↑"),
    "mass": Metric("relevance mass", "↑"),
    "redrawn": Metric("likeness to redrawn weights", "→ 0"),
    "sensitivity": Metric("max-sensitivity", "↓"),
    "seconds": Metric("seconds", "↓"),
    "peak_mb": Metric("peak MiB", "↓"),
}
_POOLED = ("pixel_accuracy", "miou")  # of counts over all slides; the others are means over slides
_UNTESTED = (*_POOLED, "redrawn", "seconds", "peak_mb")
_OF_OVERLAP = {"map": "ap", "mf1": "f1", **{name: name for name in ("auprc", "auroc", "pointing", "mass")}}


@dataclass(frozen=True)
class MeasuredSlide:
    """Where the measures of one slide by one model stand."""

    model: str
    slide_id: str
    patient_id: str
    path: Path


@dataclass(frozen=True, eq=False)
class MethodTable:
    """One method on all slides of one model."""

    values: Mapping[str, Float64]  # metric -> (S,), NaN where it was not measured; without those from counts
    counts: Int64  # (S, 4), zeros where nothing was outlined
    curve: Float64  # (P,) mean over the slides, most relevant dropped first


@dataclass(frozen=True, eq=False)
class ModelTable:
    """One model: its methods on the same S slides."""

    model: str
    patients: tuple[str, ...]  # (S,)
    methods: Mapping[str, MethodTable]
    spearman: Float64  # (M, M) mean over the slides


class Line(NamedTuple):
    """One number of one method."""

    model: str
    method: str
    metric: str
    found: Interval
    n_slides: int
    n_patients: int
    p: Mapping[str, float]  # against each of ``REFERENCES``; NaN: not tested


def join_explanations(
    slides: Sequence[MeasuredSlide], section: EvaluateConfig, output: Path, provenance: Provenance
) -> int:
    """Write the tables, the picture and, last, explanations.csv's provenance; returns the number of slides."""
    made_path(output).unlink(missing_ok=True)  # out of date from the first file that changes
    models = [model_table([s for s in slides if s.model == name]) for name in dict.fromkeys(s.model for s in slides)]
    lines = [line for model in models for line in model_lines(model, section)]
    write_text(output, table(COLUMNS, map(_cells, lines)))
    write_text(output.parent / MATRIX, matrix_table(models))
    write_text(output.parent / MARKDOWN, markdown(models, lines))
    if models:
        curves = {one.model: {name: method.curve for name, method in one.methods.items()} for one in models}
        write_bytes(output.parent / PICTURE, curves_png(curves))
    else:
        discard(output.parent / PICTURE)
    write_made(output, provenance)
    return len({slide.slide_id for slide in slides})


def model_table(slides: Sequence[MeasuredSlide]) -> ModelTable:
    """The measures of one model's slides, read. Raises ``ArtifactError`` where one is damaged."""
    found = [_read(slide.path) for slide in slides]
    patients = tuple(slide.patient_id for slide in slides)
    try:
        names = list(found[0]["methods"])
        methods = {name: _method_table([one["methods"][name] for one in found], patients) for name in names}
        spearman = _mean(np.array([one["spearman"] for one in found], np.float64))
    except (KeyError, TypeError, ValueError) as error:
        folder = slides[0].path.parent
        raise ArtifactError(f"{folder} cannot be read ({error!r}); delete it and run again") from error
    return ModelTable(slides[0].model, patients, methods, spearman)


def model_lines(model: ModelTable, section: EvaluateConfig) -> list[Line]:
    """Every metric of every method that was measured, with intervals and tests."""
    lines = []
    for name, method in model.methods.items():
        for metric, interval in method_intervals(method, model.patients, section).items():
            known = method.counts.sum(axis=1) > 0 if metric in _POOLED else np.isfinite(method.values[metric])  # (S,)
            used = [patient for patient, counts in zip(model.patients, known.tolist(), strict=True) if counts]
            if used:
                p = {other: _against(model, name, other, metric) for other in REFERENCES}
                lines.append(Line(model.model, name, metric, interval, len(used), len(set(used)), p))
    return lines


def method_intervals(method: MethodTable, patients: Sequence[str], section: EvaluateConfig) -> dict[str, Interval]:
    """Each metric, in the order of ``METRICS``, with its interval over patients."""
    columns = np.stack(list(method.values.values()), axis=1)  # (S, metrics)

    def statistic(rows: Int64) -> dict[str, float]:
        counts = method.counts[rows].sum(axis=0)
        means = dict(zip(method.values, _mean(columns[rows]).tolist(), strict=True))
        return means | {"pixel_accuracy": pixel_accuracy(counts), "miou": mean_iou(counts)}

    found = intervals(statistic, patients, section.bootstrap, section.seed)
    return {name: found[name] for name in METRICS if name in found}


def paired_p(first: Float64, second: Float64, patients: Sequence[str]) -> float:
    """Wilcoxon's signed-rank test, two-sided, of two methods on the same slides (S,), one mean difference a patient.

    Slides of one patient are not independent, so they count once. 1 where all are equal, NaN where there is none.
    """
    difference = first - second
    own: dict[str, list[float]] = {}
    for patient, value in zip(patients, difference.tolist(), strict=True):
        if np.isfinite(value):
            own.setdefault(patient, []).append(value)
    means = np.array([np.mean(values) for values in own.values()])
    if not means.any():
        return 1.0 if len(means) else NAN
    return float(wilcoxon(means).pvalue)


def matrix_table(models: Sequence[ModelTable]) -> str:
    """explanations_spearman.csv: a row a model and method, a column a method."""
    names = list(dict.fromkeys(name for one in models for name in one.methods))
    rows = []
    for one in models:
        for name, row in zip(one.methods, one.spearman.tolist(), strict=True):
            known = dict(zip(one.methods, row, strict=True))
            rows.append([one.model, name, *(number(known.get(other)) for other in names)])
    return table(["model", "method", *names], rows)


def markdown(models: Sequence[ModelTable], lines: Sequence[Line]) -> str:
    """explanations.md: a table a model and group of metrics, a row a method."""
    text = ["# Explanations, measured", "", *_PREFACE]
    for one in models:
        text += ["", f"## {one.model}", "", f"{len(one.patients)} slides of {len(set(one.patients))} patients."]
        for title, group in _GROUPS.items():
            own = {(line.method, line.metric): line for line in lines if line.model == one.model}
            known = [metric for metric in group if any((name, metric) in own for name in one.methods)]
            names = [name for name in one.methods if any((name, metric) in own for metric in known)]
            if not names:
                continue
            heads = [f"{METRICS[metric].title} {METRICS[metric].better}".strip() for metric in known]
            text += ["", f"### {title}", "", _row(["method", *heads]), _row(["---"] * (len(heads) + 1))]
            for name in names:
                text.append(_row([name, *(_value(own.get((name, metric))) for metric in known)]))
    return "\n".join(text) + "\n"


_GROUPS = {
    "Faithfulness": [name for name in METRICS if name.endswith(("_drop", "_replace"))],
    "Against the annotations": [*_POOLED, *_OF_OVERLAP, "dice"],
    "Sanity and cost": ["redrawn", "sensitivity", "seconds", "peak_mb"],
}
_PREFACE = [
    "Means over held-out slides with 95 % bootstrap intervals over patients; random scores are the floor.",
    "",
    "- AUPC: mean probability of the predicted class while patches go, the most relevant first; insertion: the same as",
    "  they come (the least relevant go first); gain: insertion less AUPC. Replaced: by the mean of the bag.",
    "- Pixel accuracy and mIoU: of the map cut at its own mean, counts over all slides. Dice: at the threshold that is",
    "  best on the other patients.",
    "- Likeness to redrawn weights: rank correlation with the map of the same design before training.",
    "- Cost: of one slide's map by all members. Peak MiB: what it took beyond what was taken before; on a CPU resident",
    "  memory of the process, looked at every 2 ms; on CUDA what torch allocated.",
    "- Tests (Wilcoxon over patients, not corrected) against attention and random stand in explanations.csv.",
]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(line: Line | None) -> str:
    if line is None or np.isnan(line.found.value):
        return "–"
    between = "" if np.isnan(line.found.low) else f" ({line.found.low:.3g} to {line.found.high:.3g})"
    return f"{line.found.value:.3g}{between}"


def _cells(line: Line) -> list[object]:
    interval = [number(getattr(line.found, name)) for name in ("value", "low", "high")]
    counts = [line.n_slides, line.n_patients]
    return [line.model, line.method, line.metric, *interval, *counts, *(number(line.p[r]) for r in REFERENCES)]


def _against(model: ModelTable, name: str, other: str, metric: str) -> float:
    if metric in _UNTESTED or name == other or other not in model.methods:
        return NAN
    first, second = (model.methods[who].values[metric] for who in (name, other))
    return paired_p(first, second, model.patients)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run again") from error
    return found


def _method_table(slides: Sequence[Mapping[str, Any]], patients: Sequence[str]) -> MethodTable:
    """What ``explanations.measure`` said of one method on each slide."""
    values: dict[str, Float64] = {}
    for way in ("drop", "replace"):
        flips = [one["flips"].get(way) for one in slides]
        most, least = (
            np.array([NAN if f is None else np.mean(f[order]) for f in flips]) for order in ("most", "least")
        )
        values |= {f"aupc_{way}": most, f"least_{way}": least, f"gain_{way}": least - most}
        values[f"contrast_{way}"] = np.array([NAN if f is None else f["most_contrast"] for f in flips], np.float64)
    against = [one["overlap"] or {} for one in slides]
    for metric, key in _OF_OVERLAP.items():
        values[metric] = np.array([one.get(key) for one in against], np.float64)
    values["dice"] = np.full(len(slides), NAN)
    outlined = [i for i, one in enumerate(against) if one]
    if outlined:
        curves = np.array([against[i]["dice"] for i in outlined])
        values["dice"][outlined] = dice_of_others(curves, [patients[i] for i in outlined])
    for metric in ("redrawn", "sensitivity"):
        values[metric] = np.array([one[metric] for one in slides], np.float64)
    for metric in ("seconds", "peak_mb"):
        values[metric] = np.array([(one["cost"] or {}).get(metric) for one in slides], np.float64)
    counts = np.array([one.get("counts", (0, 0, 0, 0)) for one in against], np.int64)
    curve = np.mean([one["flips"]["drop"]["most"] for one in slides], axis=0)
    return MethodTable(values, counts, curve)


def _mean(values: Float64) -> Float64:
    """Mean over the first axis of those that are numbers; NaN where none is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    mean: Float64 = np.divide(total, count, out=np.full(total.shape, NAN), where=count > 0)
    return mean
