"""The only file that scales coordinates: level-0 pixels, level pixels, micrometres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .types import Float64, Int64

Pair = tuple[float, float]

# A level counts as "fine enough" when it is coarser than wanted by no more than this: two scans of one
# protocol differ by about that much, and reading a level four times larger would show no more detail.
LEVEL_TOLERANCE = 1.01


def um_to_px0(length_um: float, mpp: Pair) -> Pair:
    """Length in micrometres -> (x, y) level-0 pixels, not rounded."""
    return length_um / mpp[0], length_um / mpp[1]


def side_px0(side_px: int, target_mpp: float, mpp: Pair) -> Pair:
    """Footprint in level-0 pixels of a patch of ``side_px`` pixels at ``target_mpp``."""
    return um_to_px0(side_px * target_mpp, mpp)


def best_level(downsamples: Sequence[float], wanted: float) -> int:
    """The coarsest level that is still at least as fine as ``wanted`` level-0 pixels per pixel.

    Level 0 if the slide itself is coarser than wanted.
    """
    fine = [i for i, d in enumerate(downsamples) if d <= wanted * LEVEL_TOLERANCE]
    return max(fine, key=lambda i: downsamples[i], default=0)


@dataclass(frozen=True)
class Window:
    """How to read one footprint: a whole-pixel region of a level, and the exact box inside it to resample."""

    level: int
    xy_px0: tuple[int, int]  # corner of the region to read
    size: tuple[int, int]  # (width, height) of the region, level pixels
    box: tuple[float, float, float, float]  # (left, top, right, bottom) inside the region, level pixels


def window(xy_px0: tuple[int, int], side: Pair, level: int, downsample: float) -> Window:
    """The smallest whole-pixel region of ``level`` that holds the footprint ``xy_px0`` + ``side`` level-0 pixels.

    Readers place a region at the level pixel that holds its corner, so the region starts on a level pixel and
    the footprint's fractional offset goes into ``box``.
    """
    lefts = [c / downsample for c in xy_px0]
    rights = [(c + s) / downsample for c, s in zip(xy_px0, side, strict=True)]
    starts = [math.floor(a + 1e-9) for a in lefts]
    stops = [max(math.ceil(b - 1e-9), s + 1) for b, s in zip(rights, starts, strict=True)]
    return Window(
        level=level,
        xy_px0=(round(starts[0] * downsample), round(starts[1] * downsample)),
        size=(stops[0] - starts[0], stops[1] - starts[1]),
        box=(
            max(lefts[0] - starts[0], 0.0),
            max(lefts[1] - starts[1], 0.0),
            min(rights[0] - starts[0], float(stops[0] - starts[0])),
            min(rights[1] - starts[1], float(stops[1] - starts[1])),
        ),
    )


def grid_corners_px0(slide_size_px0: tuple[int, int], side: Pair, stride: Pair) -> tuple[Int64, Int64]:
    """Column and row starts of the regular grid from (0, 0): every patch begins inside the slide.

    Each start is rounded on its own, so rounding never adds up across the slide.
    """
    columns, rows = (
        np.rint(np.arange(max(1, math.ceil((extent - side_ / 2) / step))) * step).astype(np.int64)
        for extent, side_, step in zip(slide_size_px0, side, stride, strict=True)
    )
    return columns, rows


def box_fractions(mask: np.ndarray, mask_side_px0: Pair, xy_px0: Int64, side: Pair) -> Float64:
    """Exact share (0..1) of each footprint that the mask covers, (N,).

    The mask is constant on each of its pixels, so its summed-area table, read bilinearly, is the exact integral.
    What lies outside the mask counts as not covered.
    """
    height, width = mask.shape
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = mask.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
    scale = np.asarray(mask_side_px0)
    lo = np.clip(xy_px0 / scale, 0, (width, height))
    hi = np.clip((xy_px0 + np.asarray(side)) / scale, 0, (width, height))

    def integral(x: Float64, y: Float64) -> Float64:
        col = np.minimum(x.astype(np.int64), width - 1)
        row = np.minimum(y.astype(np.int64), height - 1)
        fx, fy = x - col, y - row
        top = table[row, col] * (1 - fx) + table[row, col + 1] * fx
        bottom = table[row + 1, col] * (1 - fx) + table[row + 1, col + 1] * fx
        result: Float64 = top * (1 - fy) + bottom * fy
        return result

    covered = (
        integral(hi[:, 0], hi[:, 1])
        - integral(lo[:, 0], hi[:, 1])
        - integral(hi[:, 0], lo[:, 1])
        + integral(lo[:, 0], lo[:, 1])
    )
    area = (side[0] / scale[0]) * (side[1] / scale[1])
    fractions: Float64 = np.clip(covered / area, 0.0, 1.0)
    return fractions
