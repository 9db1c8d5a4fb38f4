"""Boolean rasters cleaned by area."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..types import Bool


def drop_small(mask: Bool, min_px: float) -> Bool:
    """``mask`` without its 4-connected pieces of fewer than ``min_px`` pixels."""
    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel())
    keep = areas >= min_px
    keep[0] = False
    kept: Bool = keep[labels]
    return kept


def fill_small(mask: Bool, min_px: float) -> Bool:
    """``mask`` with its holes of fewer than ``min_px`` pixels filled. What touches the border is no hole."""
    labels, _ = ndimage.label(~mask, structure=np.ones((3, 3), bool))
    small = np.bincount(labels.ravel()) < min_px
    small[0] = False
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    small[border] = False
    filled: Bool = mask | small[labels]
    return filled


def dilate(mask: Bool, radius_px: tuple[float, float]) -> Bool:
    """``mask`` grown by an ellipse of ``radius_px`` = (x, y) pixels, which need not be whole."""
    if not mask.any() or min(radius_px) <= 0:
        return mask
    distance = ndimage.distance_transform_edt(~mask, sampling=(1 / radius_px[1], 1 / radius_px[0]))
    grown: Bool = distance <= 1.0
    return grown
