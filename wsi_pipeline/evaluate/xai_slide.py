"""The measures of one slide's maps as JSON, from which the cohort's job computes its tables without the maps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from shapely.geometry import MultiPolygon

from ..artifacts import Provenance, write_text_with_provenance
from ..config import EvaluateConfig, ExplainConfig
from ..errors import ConfigError
from ..explain.measures.slide_measures import MethodMeasures, measure_slide
from ..predict.ensembles import card
from ..read.annotations import read_annotation
from ..types import Bool, Float32, Float64, PatchGrid, SlideRow
from .detections import detections
from .froc import slide_froc, strongest
from .lesions import UNREADABLE, Lesions, lesions_of
from .localisation import annotated_fractions, positive_patches
from .overlap import overlap

MOST = 4096  # false positives of a map that are stored: for any map enough for a resample of 511 slides


def outlined_class(slide: SlideRow, classes: Sequence[str], task: str = "classification") -> str | None:
    """The class that the slide's annotation outlines: its label; without label, the last of two classes.

    None where it is unknown (as for several labels, values and risks), or there is no annotation.
    """
    if slide.annotation is None:
        return None
    if slide.label in classes:
        return slide.label
    is_binary = task == "classification" and len(classes) == 2
    return classes[-1] if slide.label is None and is_binary else None


def measure_explanations(
    bag: Path,
    members: Sequence[Path],
    methods: Sequence[str],
    explain: ExplainConfig,
    section: EvaluateConfig,
    slide: SlideRow,
    froc: bool,
    *,
    output: Path,
    provenance: Provenance,
) -> int:
    """Measure the explanations of one slide and write them as JSON.

    Parameters
    ----------
    bag : Path
    members : sequence of Path
        Folders of the models; all are held out from the slide's patient.
    methods : sequence of str
    explain : ExplainConfig
    section : EvaluateConfig
    slide : SlideRow
    froc : bool
        Whether lesions are detected in the maps of the last of two classes.
    output : Path
    provenance : Provenance

    Returns
    -------
    int
        Number of patches.
    """
    of_model = card(members[0])
    classes = of_model.classes
    outlined, searched = outlined_class(slide, classes, of_model.task), classes[-1] if froc else None
    targets = {name for name in (outlined, searched) if name is not None}
    found = measure_slide(bag, members, methods, explain, section, targets)
    grid = found.grid
    area, note = _area(slide, grid, section) if targets else (None, "")
    positive, note = _positive(area, grid, note) if outlined else (None, note)
    lesions = _lesions(area, slide, grid, classes[0]) if froc else None

    def localise(one: MethodMeasures) -> dict[str, object]:
        measured: dict[str, object] = {"overlap": None, "froc": None}
        if outlined and positive is not None:
            measured["overlap"] = _overlap(one.maps[outlined], positive)
        if searched and isinstance(lesions, Lesions):
            measured["froc"] = _detect(one.maps[searched], grid, lesions, section)
        return measured

    content = {
        "slide_id": grid.slide_id,
        "patches": len(grid),
        "task": of_model.task,
        "target": found.target,
        "outlined": {"class": outlined, "patches": int(positive.sum())} if positive is not None else None,
        "lesions": _lesions_content(lesions),
        "note": note,
        "methods": {name: _method(one) | localise(one) for name, one in found.methods.items()},
        "spearman": [list(map(_number, row)) for row in found.spearman.tolist()],
    }
    write_text_with_provenance(output, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", provenance)
    return len(grid)


def _area(slide: SlideRow, grid: PatchGrid, section: EvaluateConfig) -> tuple[MultiPolygon | None, str]:
    """The outlined area (level-0 pixels); None without one, with the reason where the annotation is unreadable."""
    if slide.annotation is None:
        return None, ""
    try:
        return read_annotation(slide.annotation, grid.bounds_px0).area(section.tumour_classes), ""
    except ConfigError as error:
        return None, str(error)


def _positive(area: MultiPolygon | None, grid: PatchGrid, note: str) -> tuple[Bool | None, str]:
    """The outlined patches (N,); None without one, and the reason."""
    if area is None:
        return None, note
    positive = positive_patches(annotated_fractions(area, grid))
    return (positive, note) if positive.any() else (None, "no patch inside the annotation")


def _lesions(area: MultiPolygon | None, slide: SlideRow, grid: PatchGrid, negative: str) -> Lesions | str:
    unreadable = area is None and slide.annotation is not None
    return UNREADABLE if unreadable else lesions_of(area, grid, slide.label, negative)


def _lesions_content(lesions: Lesions | str | None) -> dict[str, object] | None:
    if isinstance(lesions, Lesions):
        return {"targets": lesions.targets, "isolated": sorted(lesions.isolated)}
    return None if lesions is None else {"left_out": lesions}


def _detect(scores: Float64, grid: PatchGrid, lesions: Lesions, section: EvaluateConfig) -> dict[str, object]:
    """The detections of a map (N,) matched with the lesions, in the precision of a stored map."""
    found = detections(scores.astype(np.float32), grid, section.froc_radius_um)
    matched = slide_froc(*found, lesions.mask, lesions.isolated)
    return {"false_positives": _exact(strongest(matched.false_positives, MOST)), "lesions": _exact(matched.lesions)}


def _overlap(scores: Float64, positive: Bool) -> dict[str, object]:
    return {name: _jsonable(value) for name, value in overlap(scores, positive)._asdict().items()}


def _method(one: MethodMeasures) -> dict[str, object]:
    curves = {
        removal: {
            "most": [_number(v) for v in flips.most.outcome.tolist()],
            "least": [_number(v) for v in flips.least.outcome.tolist()],
            "most_contrast": _number(float(flips.most.target.mean())),
            "least_contrast": _number(float(flips.least.target.mean())),
        }
        for removal, flips in one.flips.items()
    }
    cost = None if one.cost is None else {"seconds": one.cost.seconds, "peak_mb": one.cost.peak_bytes / 2**20}
    numbers = {name: _number(getattr(one, name)) for name in ("infidelity", "redrawn", "sensitivity")}
    return {"unit": one.unit, "flips": curves, **numbers, "cost": cost}


def _exact(values: Float32) -> list[float]:
    """The shortest decimal numbers that give these float32 values."""
    return [float(text) for text in values.astype(str)]


def _jsonable(value: float | np.ndarray) -> object:
    return [_number(v) for v in value.tolist()] if isinstance(value, np.ndarray) else _number(value)


def _number(value: float) -> float | None:
    """Eight decimals; None (null) for NaN."""
    return None if math.isnan(value) else round(value, 8)
