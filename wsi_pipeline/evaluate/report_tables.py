"""The results of evaluate as entries of report.json and rows of its CSV tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..csvtable import format_number
from .bootstrap import Interval
from .map_scores import MEANS, MapScore, MapScores
from .predictions import Prediction, Scored, left_out, scored
from .seeds import OverSeeds
from .task_metrics import Measure

METRIC_COLUMNS = ("model", "metric", "value", "low", "high", "n_slides", "n_patients", "delong_low", "delong_high")
PATIENT_COLUMNS = ("model", "metric", "value", "low", "high", "n_patients", "delong_low", "delong_high")
MAP_COLUMNS = (
    *("slide_id", "model", "method", "target", "held_out"),
    *("auprc", "base_rate", "lift", "auroc", "n_patches", "n_positive"),
)


@dataclass(frozen=True, eq=False)
class Measured:
    """One model with its measures."""

    model: Scored
    found: Mapping[str, Measure]

    @property
    def counts(self) -> dict[str, int]:
        """Number of slides (or patients) and patients from which the measures were computed."""
        return {"n_slides": len(self.model.names), "n_patients": len(set(self.model.patients))}


def metric_lines(measured: Sequence[Measured], columns: Sequence[str]) -> list[list[object]]:
    """One row per model and measure, with ``columns``: ``METRIC_COLUMNS`` or ``PATIENT_COLUMNS``."""
    lines = []
    for one in measured:
        for metric, (interval, delong) in one.found.items():
            ends = delong or (None, None)
            cells: dict[str, object] = {
                "model": one.model.model,
                "metric": metric,
                **one.counts,
                **{name: format_number(getattr(interval, name)) for name in ("value", "low", "high")},
                "delong_low": format_number(ends[0]),
                "delong_high": format_number(ends[1]),
            }
            lines.append([cells[name] for name in columns])
    return lines


def model_report(one: Measured, unit: str) -> dict[str, object]:
    """The entry of a model in report.json. ``unit``: "slides" or "patients"."""
    model, counts = one.model, one.counts
    if unit == "patients":
        del counts["n_slides"]
    return {
        "task": model.task,
        "classes": list(model.classes),
        **counts,
        **_class_counts(model),
        "metrics": {metric: _measure_report(measure) for metric, measure in one.found.items()},
    }


def seeds_report(one: OverSeeds) -> dict[str, object]:
    """The entry of a measure over seeds in report.json; the standard deviation of a single seed is null."""
    values = {seed: _six(value) for seed, value in one.values.items()}
    return {"model": one.model, "metric": one.measure, "mean": _six(one.mean), "sd": _six(one.sd), "values": values}


def model_notes(name: str, rows: Sequence[Prediction], what: str) -> list[str]:
    """What cannot be measured of a model, and why. ``what``: "slides" or "patients"."""
    notes = left_out(rows, name, what)
    model = scored(rows, name)
    one = what.removesuffix("s")
    if model is None:
        return [*notes, f"{name}: no labelled, held-out {one}, so no metrics"]
    if absent := [c for c, count in _per_class(model).items() if not count]:
        left = "no metric of them" if model.task == "multilabel" else "no metric that needs every class"
        notes.append(f"{name}: no {one} of class {', '.join(absent)}, so {left}")
    if model.task == "survival" and (ensembles := len(set(model.weights))) > 1:
        notes.append(
            f"{name}: risks of {what} are compared within each of {ensembles} ensembles, since they share no zero"
        )
    if len(set(model.patients)) < 2:
        notes.append(f"{name}: one patient only, so no intervals")
    return notes


def map_notes(maps: MapScores) -> list[str]:
    """What cannot be measured of the maps, and why."""
    notes = list(maps.notes)
    if not maps.scores:
        notes.append("maps: no slide with an annotated patch, so no map is measured")
    seen = len({(score.slide_id, score.model) for score in maps.scores if not score.held_out})
    if seen:
        notes.append(f"maps: {seen} annotated slides were used in training; they are in maps.csv, not in the means")
    return notes


def map_line(score: MapScore) -> list[object]:
    """One row of maps.csv, with ``MAP_COLUMNS``."""
    found = score.found
    values = [format_number(value) for value in (found.auprc, found.base_rate, found.lift, found.auroc)]
    held_out = str(score.held_out).lower()
    return [score.slide_id, *score.channel, held_out, *values, found.n_patches, found.n_positive]


def channel_report(example: MapScore, slides: int, means: Mapping[str, Interval]) -> dict[str, object]:
    """The entry of the means of one channel in report.json, from one of its maps, the slides and the means."""
    channel = {"model": example.model, "method": example.method, "target": example.target, "n_slides": slides}
    return channel | {name: interval_report(means[name]) for name in MEANS}


def interval_report(interval: Interval) -> dict[str, float | int | None]:
    """A measure in report.json: six decimals, null where undefined. ``resamples``: those used for the interval."""
    rounded = {name: _six(getattr(interval, name)) for name in ("value", "low", "high")}
    return rounded | {"resamples": interval.n}


def _measure_report(measure: Measure) -> dict[str, object]:
    found: dict[str, object] = {**interval_report(measure.interval)}
    return found | ({"delong": [_six(end) for end in measure.delong]} if measure.delong else {})


def _class_counts(model: Scored) -> dict[str, object]:
    if model.task == "survival":
        return {"n_events": int(model.truth[:, 1].sum())}
    return {"n_per_class": _per_class(model)} if model.task in ("classification", "multilabel") else {}


def _per_class(model: Scored) -> dict[str, int]:
    """Class -> number of rows; empty for tasks without classes."""
    if model.task not in ("classification", "multilabel"):
        return {}
    of = [model.truth[:, i] if model.task == "multilabel" else model.truth == i for i in range(len(model.classes))]
    return {name: int(rows.sum()) for name, rows in zip(model.classes, of, strict=True)}


def _six(value: float) -> float | None:
    return None if value != value else round(value, 6)
