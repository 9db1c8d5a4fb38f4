"""The measures of one slide's maps, as the JSON that the cohort's job reads; that one needs no maps."""

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
from .localisation import annotated_shares, positive_patches
from .overlap import overlap

MOST = 4096  # false positives of a map that are kept: whatever the map, enough for a resample of 511 slides


def outlined_class(slide: SlideRow, classes: Sequence[str]) -> str | None:
    """The class that the slide's annotation shows: its label's; without one, the positive of two. None: not known."""
    if slide.annotation is None:
        return None
    if slide.label in classes:
        return slide.label
    return classes[-1] if slide.label is None and len(classes) == 2 else None


def measure(
    bag: Path,
    members: Sequence[Path],
    methods: Sequence[str],
    explain: ExplainConfig,
    section: EvaluateConfig,
    slide: SlideRow,
    froc: bool,
    output: Path,
    provenance: Provenance,
) -> int:
    """Write one slide's measures; returns the number of patches.

    ``froc``: lesions are looked for in the maps of the last of two classes.
    """
    classes = card(members[0]).classes
    outlined, searched = outlined_class(slide, classes), classes[-1] if froc else None
    shown = {name for name in (outlined, searched) if name is not None}
    found = measure_slide(bag, members, methods, explain, section, shown)
    grid = found.grid
    area, note = _area(slide, grid, section) if shown else (None, "")
    positive, note = _positive(area, grid, note) if outlined else (None, note)
    lesions = _lesions(area, slide, grid, classes[0]) if froc else None

    def against(one: MethodMeasures) -> dict[str, object]:
        overlaps = _overlap(one.maps[outlined], positive) if outlined and positive is not None else None
        met = _met(one.maps[searched], grid, lesions, section) if searched and isinstance(lesions, Lesions) else None
        return {"overlap": overlaps, "froc": met}

    said = {
        "slide_id": grid.slide_id,
        "patches": len(grid),
        "target": found.target,
        "outlined": {"class": outlined, "patches": int(positive.sum())} if positive is not None else None,
        "lesions": _told(lesions),
        "note": note,
        "methods": {name: _method(one) | against(one) for name, one in found.methods.items()},
        "spearman": [list(map(_number, row)) for row in found.spearman.tolist()],
    }
    write_text_with_provenance(output, json.dumps(said, ensure_ascii=False, allow_nan=False) + "\n", provenance)
    return len(grid)


def _area(slide: SlideRow, grid: PatchGrid, section: EvaluateConfig) -> tuple[MultiPolygon | None, str]:
    """What is outlined; else None, and why where that is worth a word."""
    if slide.annotation is None:
        return None, ""
    try:
        return read_annotation(slide.annotation, grid.bounds_px0).area(section.tumour_classes), ""
    except ConfigError as error:
        return None, str(error)


def _positive(area: MultiPolygon | None, grid: PatchGrid, note: str) -> tuple[Bool | None, str]:
    """The outlined patches (N,), where there are any; else None, and why."""
    if area is None:
        return None, note
    positive = positive_patches(annotated_shares(area, grid))
    return (positive, note) if positive.any() else (None, "no patch inside the annotation")


def _lesions(area: MultiPolygon | None, slide: SlideRow, grid: PatchGrid, negative: str) -> Lesions | str:
    unreadable = area is None and slide.annotation is not None
    return UNREADABLE if unreadable else lesions_of(area, grid, slide.label, negative)


def _told(lesions: Lesions | str | None) -> dict[str, object] | None:
    if isinstance(lesions, Lesions):
        return {"targets": lesions.targets, "isolated": sorted(lesions.isolated)}
    return None if lesions is None else {"left_out": lesions}


def _met(scores: Float64, grid: PatchGrid, lesions: Lesions, section: EvaluateConfig) -> dict[str, object]:
    """What the detections of a map (N,) met, in the precision of a map that is stored."""
    found = detections(scores.astype(np.float32), grid, section.froc_radius_um)
    met = slide_froc(*found, lesions.mask, lesions.isolated)
    return {"false_positives": _exact(strongest(met.false, MOST)), "lesions": _exact(met.lesions)}


def _overlap(scores: Float64, positive: Bool) -> dict[str, object]:
    return {name: _jsonable(value) for name, value in overlap(scores, positive)._asdict().items()}


def _method(one: MethodMeasures) -> dict[str, object]:
    curves = {
        way: {
            "most": [_number(v) for v in flips.most.outcome.tolist()],
            "least": [_number(v) for v in flips.least.outcome.tolist()],
            "most_contrast": _number(float(flips.most.target.mean())),
            "least_contrast": _number(float(flips.least.target.mean())),
        }
        for way, flips in one.flips.items()
    }
    cost = None if one.cost is None else {"seconds": one.cost.seconds, "peak_mb": one.cost.peak_bytes / 2**20}
    numbers = {name: _number(getattr(one, name)) for name in ("infidelity", "redrawn", "sensitivity")}
    return {"unit": one.unit, "flips": curves, **numbers, "cost": cost}


def _exact(values: Float32) -> list[float]:
    """The shortest numbers that are these single ones again."""
    return [float(text) for text in values.astype(str)]


def _jsonable(value: float | np.ndarray) -> object:
    return [_number(v) for v in value.tolist()] if isinstance(value, np.ndarray) else _number(value)


def _number(value: float) -> float | None:
    """Eight decimals; null where there is no number."""
    return None if math.isnan(value) else round(value, 8)
