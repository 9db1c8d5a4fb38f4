"""The only file that scales coordinates: level-0 pixels, level pixels, micrometres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Windows(NamedTuple):
    """The same for many footprints of one level."""

    start: Int64  # (N, 2) first pixel of the region, level pixels
    size: Int64  # (N, 2) (width, height) of the region, level pixels
    box: Float64  # (N, 4) (left, top, right, bottom) inside the region, level pixels


def windows(xy_px0: Int64, side: Pair, downsample: float) -> Windows:
    """The smallest whole-pixel regions that hold the footprints ``xy_px0`` (N, 2) + ``side`` level-0 pixels.

    Readers place a region at the level pixel that holds its corner, so the region starts on a level pixel and
    the footprint's fractional offset goes into ``box``.
    """
    left = xy_px0 / downsample
    right = (xy_px0 + np.asarray(side)) / downsample
    start = np.floor(left + 1e-9)
    size = np.maximum(np.ceil(right - 1e-9) - start, 1)
    box = np.hstack([np.maximum(left - start, 0), np.minimum(right - start, size)])
    return Windows(start.astype(np.int64), size.astype(np.int64), box)


def window(xy_px0: tuple[int, int], side: Pair, level: int, downsample: float) -> Window:
    """The one of the footprint at ``xy_px0``, as a reader wants it."""
    start, size, box = windows(np.array([xy_px0]), side, downsample)
    x, y = np.rint(start[0] * downsample).astype(int).tolist()
    (width, height), (left, top, right, bottom) = size[0].tolist(), box[0].tolist()
    return Window(level, (x, y), (width, height), (left, top, right, bottom))


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
