"""Localisation: how well patch scores rank the patches inside an annotation before the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from ..types import Bool, Float32, Float64, PatchGrid
from .ranking import auroc, average_precision, ranking

MIN_FRACTION = 0.5  # a patch is positive where at least this fraction of it is annotated
_ROUNDING = 1e-9  # tolerance for a fraction computed from areas
_FEW = 8  # boxes that are intersected without further halving


class Localisation(NamedTuple):
    """Agreement of one map with one annotation; every tissue patch has the same weight."""

    auprc: float  # average precision
    base_rate: float  # fraction of positive patches: the AUPRC of a random map
    lift: float  # auprc / base_rate
    auroc: float  # NaN where every patch is positive
    n_patches: int
    n_positive: int


def annotated_fractions(area: BaseGeometry, grid: PatchGrid) -> Float64:
    """Exact fraction (N,) of each patch's footprint inside ``area`` (level-0 pixels).

    Only patches on the border are intersected with the outline; the others lie inside or outside as a whole.
    """
    left, top = grid.xy_px0[:, 0], grid.xy_px0[:, 1]
    boxes = shapely.box(left, top, left + grid.side_px0[0], top + grid.side_px0[1])  # (N,)
    shapely.prepare(area)
    inside = shapely.covers(area, boxes)  # (N,)
    border = shapely.intersects(area, boxes) & ~inside
    fractions: Float64 = inside.astype(np.float64)
    fractions[border] = _covered_px0(area, boxes[border]) / shapely.area(boxes[border])
    return fractions


def _covered_px0(area: BaseGeometry, boxes: np.ndarray) -> Float64:
    """Area of each box inside ``area``, (n,).

    The time of an intersection grows with the vertices of the outline, of which there may be a hundred thousand. So the
    boxes are split recursively by position, and each half is intersected only with the outline's part around it.
    """
    if len(boxes) <= _FEW:
        covered: Float64 = shapely.area(shapely.intersection(area, boxes))
        return covered
    bounds = shapely.bounds(boxes)  # (n, 4) left, top, right, bottom
    axis = int(np.argmax(np.ptp(bounds[:, :2], axis=0)))
    covered = np.empty(len(boxes))
    for half in np.array_split(np.argsort(bounds[:, axis], kind="stable"), 2):
        window = shapely.box(*bounds[half, :2].min(axis=0), *bounds[half, 2:].max(axis=0))
        covered[half] = _covered_px0(shapely.intersection(area, window), boxes[half])
    return covered


def positive_patches(fractions: Float64, min_fraction: float = MIN_FRACTION) -> Bool:
    """Which patches count as annotated (N,), from their annotated fractions (N,)."""
    return fractions >= min_fraction - _ROUNDING


def localisation(scores: Float32, positive: Bool) -> Localisation:
    """Compare a map with an annotation.

    Parameters
    ----------
    scores : array (N,)
        One per patch, high where the class is.
    positive : bool array (N,)
        Annotated patches, at least one. Where all are, AUPRC is 1 and AUROC is NaN.

    Returns
    -------
    Localisation
    """
    base_rate, ranked = float(positive.mean()), ranking(positive, scores)
    auprc = 1.0 if positive.all() else average_precision(ranked)
    return Localisation(
        auprc=auprc,
        base_rate=base_rate,
        lift=auprc / base_rate,
        auroc=auroc(ranked),
        n_patches=len(positive),
        n_positive=int(positive.sum()),
    )
