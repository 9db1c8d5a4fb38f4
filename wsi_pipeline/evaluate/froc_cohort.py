"""The FROC of every model over its held-out slides: those with outlined lesions, and negative ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..config import EvaluateConfig
from ..csvtable import format_number
from ..errors import ConfigError
from ..read.annotations import read_annotation
from ..store import read_explanations
from ..types import Explanation, Float64, Int64, PatchGrid
from .bootstrap import Interval, intervals
from .detections import Detections, detections
from .froc import RATES, SlideFroc, froc_curve, froc_score, sensitivities, slide_froc
from .lesions import UNREADABLE, Lesions, lesions_of
from .map_scores import SlideMaps
from .predictions import Prediction
from .report_tables import interval_report

COLUMNS = (
    *("slide_id", "model", "method", "lesions", "isolated", "false_positives"),
    *("strongest_false_positive", "lesion_probabilities"),
)
MEASURES = ("froc", *(f"froc_sensitivity_at_{rate:g}" for rate in RATES))
_FIRST_TRY = 4 * RATES[-1]  # false positives per slide, the highest of the cohort, from which a resample is first made


@dataclass(frozen=True, eq=False)
class FrocSlide:
    """One slide of one model."""

    slide_id: str
    patient_id: str
    isolated: frozenset[int]  # labels of the lesions that are isolated tumour cells, from 1
    found: SlideFroc


@dataclass(eq=False)
class ModelFroc:
    """One model over its held-out slides."""

    model: str
    method: str
    unit: str = ""  # of the scores
    slides: list[FrocSlide] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> number of slides
    measures: dict[str, Interval] = field(default_factory=dict)  # ``MEASURES``; empty where there is no lesion
    curve: tuple[Float64, Float64] | None = None  # false positives per slide, fraction of lesions detected


def froc_of_models(
    maps: Sequence[SlideMaps],
    predictions: Sequence[Prediction],
    section: EvaluateConfig,
    save: Callable[[str, str, Detections], None] | None = None,
) -> list[ModelFroc]:
    """The FROC of each binary classifier that has maps of the method ``section.froc``.

    Parameters
    ----------
    maps : sequence of SlideMaps
        Only the maps of the last class, the positive one, are used.
    predictions : sequence of Prediction
    section : EvaluateConfig
        ``froc``, ``froc_radius_um``, ``tumour_classes``, ``bootstrap`` and ``seed`` are used.
    save : callable, optional
        Called with model, slide_id and detections of every slide that is used.

    Returns
    -------
    list of ModelFroc
        A slide with outlines has the lesions of ``tumour_classes``; one without, labelled as the first class, has
        none, and all its detections are false positives (see ``lesions``). Other slides, and those of patients on
        which the model was trained, are counted and left out. Intervals are over patients.
    """
    method = str(section.froc)
    binary = {(p.name, p.model): p for p in predictions if p.task == "classification" and len(p.outcome) == 2}
    models = {model: ModelFroc(model, method) for _, model in binary}
    for slide in maps:
        lesions: Lesions | str | None = None  # computed once for all models
        for explanation, held_out in _maps_of(slide, method):
            prediction = binary.get((slide.slide_id, explanation.model))
            if prediction is None or explanation.target != list(prediction.outcome)[-1]:
                continue
            one = models[explanation.model]
            one.unit = explanation.unit
            if not held_out:
                one.left_out["its model was trained on the patient"] += 1
                continue
            lesions = _lesions(slide, explanation.grid, prediction, section) if lesions is None else lesions
            if isinstance(lesions, str):
                one.left_out[lesions] += 1
                continue
            found = detections(explanation.scores, explanation.grid, section.froc_radius_um)
            if save is not None:
                save(one.model, slide.slide_id, found)
            matched = slide_froc(*found, lesions.mask, lesions.isolated)
            one.slides.append(FrocSlide(slide.slide_id, slide.patient_id, lesions.isolated, matched))
    used = [one for one in models.values() if one.slides or one.left_out]
    for one in used:
        if any(slide.found.targets for slide in one.slides):
            one.curve = froc_curve([slide.found for slide in one.slides])
            one.measures = froc_intervals(one.slides, section)
    return used


def froc_intervals(slides: Sequence[FrocSlide], section: EvaluateConfig) -> dict[str, Interval]:
    """``MEASURES`` with their intervals over patients. Resamples without a lesion are not used.

    For speed, a resample is first computed from the highest false positives of the cohort. Where these exceed 8 per
    slide, as they nearly always do, the lower ones have no influence; else it is computed from all.
    """
    found = [slide.found for slide in slides]
    strong = _strongest(found, int(_FIRST_TRY * len(found)))

    def statistic(rows: Int64) -> dict[str, float]:
        curve = froc_curve([strong[i] for i in rows])
        if curve[0][-1] <= RATES[-1]:
            curve = froc_curve([found[i] for i in rows])
        return dict(zip(MEASURES, (froc_score(*curve), *sensitivities(*curve).tolist()), strict=True))

    return intervals(statistic, [slide.patient_id for slide in slides], section.bootstrap, section.seed)


def froc_lines(one: ModelFroc) -> list[list[object]]:
    """One row per slide, with ``COLUMNS``; the lesions' probabilities without those of isolated tumour cells."""
    lines: list[list[object]] = []
    for slide in one.slides:
        found = slide.found
        targets = [format_number(p) for i, p in enumerate(found.lesions.tolist(), 1) if i not in slide.isolated]
        false = found.false_positives
        strongest = format_number(float(false.max())) if len(false) else ""
        counts = (slide.slide_id, one.model, one.method, found.targets, len(slide.isolated), len(false))
        lines.append([*counts, strongest, ";".join(targets)])
    return lines


def froc_report(one: ModelFroc) -> dict[str, object]:
    """The entry of a model in report.json."""
    counts = {
        "n_slides": len(one.slides),
        "n_lesions": sum(slide.found.targets for slide in one.slides),
        "n_isolated": sum(len(slide.isolated) for slide in one.slides),
    }
    measures = {name: interval_report(interval) for name, interval in one.measures.items()}
    return {"model": one.model, "method": one.method, **counts, "metrics": measures}


def froc_notes(one: ModelFroc) -> list[str]:
    """Caveats of a model's FROC, and the slides left out."""
    head = f"FROC of {one.model} by {one.method}"
    notes = left_out_notes(one.left_out)
    if one.curve is None:
        notes.append("there is no held-out slide with a lesion, so there is no curve")
    elif one.unit != "probability":
        notes.append(relative_note(one.unit))
    return [f"{head}: {note}" for note in notes]


def left_out_notes(left_out: Mapping[str, int]) -> list[str]:
    """One note per reason; ``left_out``: reason -> number of slides."""
    return [f"{count} slides left out: {reason}" for reason, count in sorted(left_out.items())]


def relative_note(unit: str) -> str:
    """The caveat of maps whose scores are not probabilities."""
    return f"{unit} is relative to its slide, so a threshold does not have the same meaning on all slides"


def _maps_of(slide: SlideMaps, method: str) -> Iterator[tuple[Explanation, bool]]:
    for path, held_out in slide.maps:
        for explanation in read_explanations(path):
            if explanation.method == method:
                yield explanation, held_out


def _lesions(slide: SlideMaps, grid: PatchGrid, prediction: Prediction, section: EvaluateConfig) -> Lesions | str:
    area = None
    if slide.annotation is not None:
        try:
            area = read_annotation(slide.annotation, grid.bounds_px0).area(section.tumour_classes)
        except ConfigError:  # reported with the localisation of the maps
            return UNREADABLE
    return lesions_of(area, grid, prediction.label, next(iter(prediction.outcome)))


def _strongest(found: Sequence[SlideFroc], count: int) -> list[SlideFroc]:
    """The same slides with the ``count`` highest false positives of all, and those that tie with the last."""
    false = np.concatenate([slide.false_positives for slide in found])
    if len(false) <= count:
        return list(found)
    least = np.partition(false, -count)[-count]
    return [
        SlideFroc(slide.false_positives[slide.false_positives >= least], slide.lesions, slide.targets)
        for slide in found
    ]
