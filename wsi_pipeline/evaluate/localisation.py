"""Does a map find what was outlined? Patch scores against the share of each patch that lies in the annotation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry
from sklearn.metrics import average_precision_score, roc_auc_score

from ..types import Bool, Float32, Float64, PatchGrid

MIN_SHARE = 0.5  # a patch is positive when at least this share of it is annotated
_ROUNDING = 1e-9  # of a share computed from areas
_FEW = 8  # boxes cut without halving them further


class Localisation(NamedTuple):
    """One map against one annotation, every tissue patch weighing the same."""

    auprc: float  # average precision
    base_rate: float  # share of positive patches: what a random map gets
    lift: float  # auprc / base_rate
    auroc: float  # NaN where every patch is positive
    n_patches: int
    n_positive: int


def annotated_shares(area: BaseGeometry, grid: PatchGrid) -> Float64:
    """Exact share (0..1) of each patch's footprint inside ``area`` (level-0 pixels), (N,).

    Only patches on the border are cut; the others lie in or out as a whole.
    """
    left, top = grid.xy_px0[:, 0], grid.xy_px0[:, 1]
    boxes = shapely.box(left, top, left + grid.side_px0[0], top + grid.side_px0[1])  # (N,)
    shapely.prepare(area)
    inside = shapely.covers(area, boxes)  # (N,)
    border = shapely.intersects(area, boxes) & ~inside
    shares: Float64 = inside.astype(np.float64)
    shares[border] = _covered_px0(area, boxes[border]) / shapely.area(boxes[border])
    return shares


def _covered_px0(area: BaseGeometry, boxes: np.ndarray) -> Float64:
    """Area of each box inside ``area``, (n,).

    Cutting takes time with every corner of the outline, of which a scanner's annotation has a hundred thousand: so
    the boxes are halved by place again and again, and each half meets only what is left of the outline there.
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


def positive_patches(shares: Float64, min_share: float = MIN_SHARE) -> Bool:
    """Which patches count as annotated, (N,)."""
    return shares >= min_share - _ROUNDING


def localisation(scores: Float32, positive: Bool) -> Localisation:
    """How well ``scores`` (N,) rank the ``positive`` (N,) patches first. At least one patch is positive."""
    base_rate = float(positive.mean())
    auprc = float(average_precision_score(positive, scores))
    return Localisation(
        auprc=auprc,
        base_rate=base_rate,
        lift=auprc / base_rate,
        auroc=float("nan") if positive.all() else float(roc_auc_score(positive, scores)),
        n_patches=len(positive),
        n_positive=int(positive.sum()),
    )
