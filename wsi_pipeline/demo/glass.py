"""Artefacts besides tissue: uneven illumination, dust and pen strokes."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from ..types import Bool, Float32, Float64
from .layout import UNIT_PX0, Layout, site_mask
from .shapes import resized, smooth_noise


def light(shape: tuple[int, int], rng: np.random.Generator) -> Float32:
    """(h, w) illumination in 1/256: brightest near the centre, one or two per cent lower in the corners."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    x0, y0 = rng.uniform(-0.3, 0.3, 2)
    field = 254 - 3.0 * (np.square(x - x0) + np.square(y - y0)) + smooth_noise(shape, 200, rng)
    return np.asarray(field, np.float32)


def dust(shape: tuple[int, int], rng: np.random.Generator) -> Float32:
    """(h, w) fraction of the light that is absorbed by out-of-focus dust."""
    field = np.zeros(shape, np.float32)
    for _ in range(rng.integers(4, 14)):
        column, row = rng.integers(0, shape[1]), rng.integers(0, shape[0])
        rows, columns = rng.integers(1, 7), rng.integers(1, 7)
        field[row : row + rows, column : column + columns] = rng.uniform(0.3, 0.9)
    return np.asarray(np.clip(gaussian_filter(field, 1.3), 0, 0.9))


def ink(layout: Layout, rng: np.random.Generator) -> Float32:
    """(h, w) strength of one pen stroke over glass and the tissue's edge.

    Chosen from many random strokes: it touches no site, because it would hide annotated tumour, and covers a little
    tissue.
    """
    step = max(1, len(layout.inside_um) // 375)
    inside = layout.inside_um[::step, ::step] > 0
    shape = (len(inside), len(inside))
    crowd = site_mask(layout.sites, shape, UNIT_PX0 * step)
    best, best_cost = np.zeros(shape, np.float32), np.inf
    for _ in range(25):
        stroke = _stroke(shape, rng.uniform(0.023, 0.045) * shape[0], rng)
        covered = stroke > 0
        area = float(covered.sum())
        cost = 50 * float((covered & crowd).sum()) + abs(float((covered & inside).sum()) - 0.3 * area) - 0.5 * area
        if cost < best_cost:
            best, best_cost = stroke, cost
    coarse = len(layout.inside_um)
    strength = resized(best, (shape[0] * step, shape[1] * step))[:coarse, :coarse]
    streaks = 0.8 + 0.16 * smooth_noise(strength.shape, 22, rng) + 0.05 * smooth_noise(strength.shape, 3, rng)
    return np.asarray(np.clip(np.clip(strength * 2, 0, 1) * streaks, 0, 1.2), np.float32)


def _stroke(shape: tuple[int, int], half_width: float, rng: np.random.Generator) -> Float32:
    """Positive inside a bent stroke with round ends, rising to 1 about 1.5 pixels from its edge."""
    h, w = shape
    start = rng.uniform(0.05, 0.95, 2) * (w, h)
    turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.7) * w
    bend = rng.uniform(-1, 1)
    t = np.linspace(0, 1, 200)
    heading = turn + bend * t
    path: Float64 = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * length / len(t)
    line: Bool = np.ones(shape, bool)
    column, row = np.floor(path).astype(int).T
    seen = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    line[row[seen], column[seen]] = False
    if not seen.any():
        return np.zeros(shape, np.float32)
    return np.asarray(np.clip((half_width - distance_transform_edt(line)) / 1.5, 0, 1), np.float32)
