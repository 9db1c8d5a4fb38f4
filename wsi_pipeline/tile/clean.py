"""Cleaning of boolean rasters by area."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from ..types import Bool


def drop_small(mask: Bool, min_px: float) -> Bool:
    """Remove the 4-connected components of ``mask`` (h, w) with fewer than ``min_px`` pixels."""
    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel())
    keep = areas >= min_px
    keep[0] = False
    kept: Bool = keep[labels]
    return kept


def fill_small(mask: Bool, min_px: float) -> Bool:
    """Fill the holes of ``mask`` (h, w) with fewer than ``min_px`` pixels; background at the border is not a hole."""
    labels, _ = ndimage.label(~mask, structure=np.ones((3, 3), bool))
    small = np.bincount(labels.ravel()) < min_px
    small[0] = False
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    small[border] = False
    filled: Bool = mask | small[labels]
    return filled


def dilate(mask: Bool, radius_px: tuple[float, float]) -> Bool:
    """Dilate ``mask`` (h, w) by an ellipse of ``radius_px`` = (x, y) pixels, which may be fractional."""
    radius_x, radius_y = radius_px
    if not mask.any() or min(radius_px) <= 0:
        return mask
    height, width = mask.shape
    sums = np.zeros((height, width + 1), np.int32)  # running sums along each row
    np.cumsum(mask, axis=1, out=sums[:, 1:])
    columns = np.arange(width)
    grown = np.zeros_like(mask)
    for rise in range(min(math.floor(radius_y), height - 1) + 1):
        reach = math.floor(radius_x * math.sqrt(1 - (rise / radius_y) ** 2) + 1e-9)
        near = sums[:, np.minimum(columns + reach + 1, width)] > sums[:, np.maximum(columns - reach, 0)]
        grown[rise:] |= near[: height - rise]
        grown[: height - rise] |= near[rise:]
    return grown
