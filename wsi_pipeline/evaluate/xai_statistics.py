"""Statistics of the measures of explanations: means over slides with intervals over patients, and paired tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from ..config import EvaluateConfig
from ..errors import ArtifactError
from ..types import Float64, Int64
from .bootstrap import Interval, intervals
from .froc import SlideFroc
from .froc_cohort import FrocSlide, froc_intervals
from .overlap import dice_of_others, mean_iou, pixel_accuracy

REFERENCES = ("attention", "random")
NAN = float("nan")


class Metric(NamedTuple):
    """A column of explanations.md."""

    title: str
    better: str  # the better direction: ↑, ↓ or → 0


METRICS = {
    "aupc_drop": Metric("AUPC", "↓"),
    "least_drop": Metric("insertion", "↑"),
    "gain_drop": Metric("gain", "↑"),
    "contrast_drop": Metric("AUPC of the explained output", "↓"),
    "aupc_replace": Metric("AUPC, replaced", "↓"),
    "least_replace": Metric("insertion, replaced", "↑"),
    "gain_replace": Metric("gain, replaced", "↑"),
    "contrast_replace": Metric("AUPC of the explained output, replaced", "↓"),
    "infidelity": Metric("infidelity", "↓"),
    "pixel_accuracy": Metric("pixel accuracy", "↑"),
    "miou": Metric("mIoU", "↑"),
    "map": Metric("mAP", "↑"),
    "mf1": Metric("mF1", "↑"),
    "auprc": Metric("AUPRC", "↑"),
    "auroc": Metric("AUROC", "↑"),
    "dice": Metric("Dice", "↑"),
    "pointing": Metric("pointing game", "↑"),
    "mass": Metric("relevance mass", "↑"),
    "froc": Metric("FROC", "↑"),
    "redrawn": Metric("similarity to random weights", "→ 0"),
    "sensitivity": Metric("max-sensitivity", "↓"),
    "seconds": Metric("seconds", "↓"),
    "peak_mb": Metric("peak MiB", "↓"),
}
POOLED = ("pixel_accuracy", "miou")  # from counts over all slides; the others are means over slides
_UNTESTED = (*POOLED, "froc", "redrawn", "seconds", "peak_mb")
OF_OVERLAP = {"map": "ap", "mf1": "f1", **{name: name for name in ("auprc", "auroc", "pointing", "mass")}}


@dataclass(frozen=True)
class MeasuredSlide:
    """The file with the measures of one slide and model."""

    model: str
    slide_id: str
    patient_id: str
    path: Path


@dataclass(frozen=True, eq=False)
class MethodTable:
    """One method on all S slides of one model."""

    values: Mapping[str, Float64]  # metric -> (S,), NaN where it was not measured; without ``POOLED``
    counts: Int64  # (S, 4), see ``overlap.Overlap``; zeros where nothing was outlined
    curve: Float64  # (P,) mean patch-flipping curve of the slides, the most relevant patches removed first
    unit: str | None  # of its scores; None: random scores
    froc: Sequence[FrocSlide]  # the slides whose lesions are known, including normal ones


@dataclass(frozen=True, eq=False)
class ModelTable:
    """One model with M methods on the same S slides."""

    model: str
    task: str
    patients: tuple[str, ...]  # (S,)
    methods: Mapping[str, MethodTable]
    spearman: Float64  # (M, M) rank correlation of the methods' maps, mean over the slides
    left_out: Mapping[str, int]  # slides left out of the FROC: reason -> number


class Line(NamedTuple):
    """One number of one method."""

    model: str
    method: str
    metric: str
    found: Interval
    n_slides: int
    n_patients: int
    p: Mapping[str, float]  # against each of ``REFERENCES``; NaN: not tested


def model_table(slides: Sequence[MeasuredSlide]) -> ModelTable:
    """Read the measures of one model's slides. Raises ``ArtifactError`` where a file is damaged."""
    found = [_read(slide.path) for slide in slides]
    patients = tuple(slide.patient_id for slide in slides)
    try:
        task, names = found[0]["task"], list(found[0]["methods"])
        frocs = {name: _froc_slides(slides, found, name) for name in names}
        methods = {n: _method_table([one["methods"][n] for one in found], patients, frocs[n]) for n in names}
        spearman = _mean(np.array([one["spearman"] for one in found], np.float64))
        left_out = Counter(one["lesions"]["left_out"] for one in found if "left_out" in (one["lesions"] or ()))
    except (KeyError, TypeError, ValueError) as error:
        folder = slides[0].path.parent
        raise ArtifactError(f"{folder} cannot be read ({error!r}); delete it and run again") from error
    return ModelTable(slides[0].model, task, patients, methods, spearman, left_out)


def model_lines(model: ModelTable, section: EvaluateConfig) -> list[Line]:
    """Every measured metric of every method, with intervals and tests."""
    lines = []
    for name, method in model.methods.items():
        for metric, interval in method_intervals(method, model.patients, section).items():
            if used := _used(method, metric, model.patients):
                p = {other: _p_value(model, name, other, metric) for other in REFERENCES}
                lines.append(Line(model.model, name, metric, interval, len(used), len(set(used)), p))
    return lines


def _used(method: MethodTable, metric: str, patients: Sequence[str]) -> list[str]:
    """The patient of each slide from which the metric is computed."""
    if metric == "froc":
        return [slide.patient_id for slide in method.froc]
    measured = method.counts.sum(axis=1) > 0 if metric in POOLED else np.isfinite(method.values[metric])  # (S,)
    return [patient for patient, is_used in zip(patients, measured.tolist(), strict=True) if is_used]


def method_intervals(method: MethodTable, patients: Sequence[str], section: EvaluateConfig) -> dict[str, Interval]:
    """Each metric of ``method``, in the order of ``METRICS``, with its interval over patients.

    ``patients``: that of each slide (S,).
    """
    columns = np.stack(list(method.values.values()), axis=1)  # (S, metrics)

    def statistic(rows: Int64) -> dict[str, float]:
        counts = method.counts[rows].sum(axis=0)
        means = dict(zip(method.values, _mean(columns[rows]).tolist(), strict=True))
        return means | {"pixel_accuracy": pixel_accuracy(counts), "miou": mean_iou(counts)}

    found = intervals(statistic, patients, section.bootstrap, section.seed)
    if any(slide.found.targets for slide in method.froc):
        found["froc"] = froc_intervals(method.froc, section)["froc"]
    return {name: found[name] for name in METRICS if name in found}


def paired_p(first: Float64, second: Float64, patients: Sequence[str]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test between two methods.

    Parameters
    ----------
    first, second : array (S,)
        A metric of the two methods on the same slides; slides where either is not finite are not used.
    patients : S strings
        The mean difference of each patient is tested, since slides of one patient are not independent.

    Returns
    -------
    float
        1 where all differences are 0, NaN where there is none.
    """
    difference = first - second
    of_patient: dict[str, list[float]] = {}
    for patient, value in zip(patients, difference.tolist(), strict=True):
        if np.isfinite(value):
            of_patient.setdefault(patient, []).append(value)
    means = np.array([np.mean(values) for values in of_patient.values()])
    if not means.any():
        return 1.0 if len(means) else NAN
    return float(wilcoxon(means).pvalue)


def _p_value(model: ModelTable, name: str, other: str, metric: str) -> float:
    if metric in _UNTESTED or name == other or other not in model.methods:
        return NAN
    first, second = (model.methods[method].values[metric] for method in (name, other))
    return paired_p(first, second, model.patients)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run again") from error
    return found


def _froc_slides(slides: Sequence[MeasuredSlide], found: Sequence[Mapping[str, Any]], method: str) -> list[FrocSlide]:
    """The matched detections of one method, on the slides whose lesions are known."""
    frocs = []
    for slide, one in zip(slides, found, strict=True):
        if matched := one["methods"][method]["froc"]:
            false, lesions = (np.array(matched[name], np.float32) for name in ("false_positives", "lesions"))
            isolated, targets = frozenset(one["lesions"]["isolated"]), one["lesions"]["targets"]
            frocs.append(FrocSlide(slide.slide_id, slide.patient_id, isolated, SlideFroc(false, lesions, targets)))
    return frocs


def _method_table(
    slides: Sequence[Mapping[str, Any]], patients: Sequence[str], froc: Sequence[FrocSlide]
) -> MethodTable:
    """The entries of one method in the files that ``xai_slide.measure_explanations`` wrote, as arrays over slides."""
    values: dict[str, Float64] = {}
    for removal in ("drop", "replace"):
        flips = [one["flips"].get(removal) for one in slides]
        most, least = (
            np.array([NAN if f is None else np.mean(f[order]) for f in flips]) for order in ("most", "least")
        )
        values |= {f"aupc_{removal}": most, f"least_{removal}": least, f"gain_{removal}": least - most}
        values[f"contrast_{removal}"] = np.array([NAN if f is None else f["most_contrast"] for f in flips], np.float64)
    overlaps = [one["overlap"] or {} for one in slides]
    for metric, key in OF_OVERLAP.items():
        values[metric] = np.array([one.get(key) for one in overlaps], np.float64)
    values["dice"] = np.full(len(slides), NAN)
    outlined = [i for i, one in enumerate(overlaps) if one]
    if outlined:
        curves = np.array([overlaps[i]["dice"] for i in outlined])
        values["dice"][outlined] = dice_of_others(curves, [patients[i] for i in outlined])
    for metric in ("infidelity", "redrawn", "sensitivity"):
        values[metric] = np.array([one[metric] for one in slides], np.float64)
    for metric in ("seconds", "peak_mb"):
        values[metric] = np.array([(one["cost"] or {}).get(metric) for one in slides], np.float64)
    counts = np.array([one.get("counts", (0, 0, 0, 0)) for one in overlaps], np.int64)
    curve = np.mean([one["flips"]["drop"]["most"] for one in slides], axis=0)
    return MethodTable(values, counts, curve, slides[0]["unit"], froc)


def _mean(values: Float64) -> Float64:
    """Mean of the finite values over the first axis; NaN where there is none."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0.0).sum(axis=0)
    count = finite.sum(axis=0)
    mean: Float64 = np.divide(total, count, out=np.full(total.shape, NAN), where=count > 0)
    return mean
