"""Conversion between level-0 pixels, level pixels and micrometres: the only module that scales coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .types import Float64, Int64

Pair = tuple[float, float]

# A level is fine enough if it is coarser than the target by no more than this factor: two scans of one protocol
# differ by about as much, and a level four times larger would show no more detail.
LEVEL_TOLERANCE = 1.01


def um_to_px0(length_um: float, mpp: Pair) -> Pair:
    """Convert a length to level-0 pixels, without rounding.

    Parameters
    ----------
    length_um : float
        Length in µm.
    mpp : (float, float)
        µm per level-0 pixel, (x, y).

    Returns
    -------
    (float, float)
        The length in level-0 pixels along x and along y.

    Examples
    --------
    >>> um_to_px0(100.0, (0.5, 0.25))
    (200.0, 400.0)
    """
    return length_um / mpp[0], length_um / mpp[1]


def side_px0(side_px: int, target_mpp: float, mpp: Pair) -> Pair:
    """Footprint of a patch in level-0 pixels.

    Parameters
    ----------
    side_px : int
        Side of the patch in pixels at ``target_mpp``.
    target_mpp : float
        µm per pixel of the patch.
    mpp : (float, float)
        µm per level-0 pixel, (x, y).

    Returns
    -------
    (float, float)
        Width and height in level-0 pixels, not rounded.

    Examples
    --------
    >>> side_px0(224, 0.5, (0.25, 0.25))
    (448.0, 448.0)
    """
    return um_to_px0(side_px * target_mpp, mpp)


def best_level(downsamples: Sequence[float], target: float) -> int:
    """Choose the coarsest level that is at least as fine as the target resolution.

    Parameters
    ----------
    downsamples : sequence of float
        Level-0 pixels per pixel of each level.
    target : float
        Level-0 pixels per pixel of the output.

    Returns
    -------
    int
        Index of the level; 0 if the slide itself is coarser than the target. A level that is coarser by at most 1 %
        still counts.

    Examples
    --------
    >>> best_level((1.0, 4.0, 16.0), 8.0)
    1
    """
    fine = [i for i, d in enumerate(downsamples) if d <= target * LEVEL_TOLERANCE]
    return max(fine, key=lambda i: downsamples[i], default=0)


@dataclass(frozen=True)
class Window:
    """How to read one footprint: a whole-pixel region of a level, and the exact box inside it to resample."""

    level: int
    xy_px0: tuple[int, int]  # corner of the region to read
    size: tuple[int, int]  # (width, height) of the region, level pixels
    box: tuple[float, float, float, float]  # (left, top, right, bottom) inside the region, level pixels


class Windows(NamedTuple):
    """How to read N footprints from one level; see ``Window``."""

    start: Int64  # (N, 2) first pixel of the region, level pixels
    size: Int64  # (N, 2) (width, height) of the region, level pixels
    box: Float64  # (N, 4) (left, top, right, bottom) inside the region, level pixels


def windows(xy_px0: Int64, side: Pair, downsample: float) -> Windows:
    """Find the smallest whole-pixel regions of a level that contain the given footprints.

    Readers place a region at the level pixel that contains its corner, so the region starts on a level pixel and
    the footprint's fractional offset goes into ``box``.

    Parameters
    ----------
    xy_px0 : ndarray of int64, (N, 2)
        Top-left corners in level-0 pixels.
    side : (float, float)
        Width and height of each footprint in level-0 pixels.
    downsample : float
        Level-0 pixels per pixel of the level.

    Returns
    -------
    Windows
        The regions, and the exact boxes inside them.
    """
    left = xy_px0 / downsample
    right = (xy_px0 + np.asarray(side)) / downsample
    start = np.floor(left + 1e-9)
    size = np.maximum(np.ceil(right - 1e-9) - start, 1)
    box = np.hstack([np.maximum(left - start, 0), np.minimum(right - start, size)])
    return Windows(start.astype(np.int64), size.astype(np.int64), box)


def window(xy_px0: tuple[int, int], side: Pair, level: int, downsample: float) -> Window:
    """As ``windows``, for one footprint, with the region's corner in level-0 pixels for ``Slide.read``."""
    start, size, box = windows(np.array([xy_px0]), side, downsample)
    x, y = np.rint(start[0] * downsample).astype(int).tolist()
    (width, height), (left, top, right, bottom) = size[0].tolist(), box[0].tolist()
    return Window(level, (x, y), (width, height), (left, top, right, bottom))


def grid_corners_px0(slide_size_px0: tuple[int, int], side: Pair, stride: Pair) -> tuple[Int64, Int64]:
    """Column and row starts of the regular grid that begins at (0, 0).

    At least half of each patch lies inside the slide. Each start is rounded on its own, so rounding errors never
    accumulate across the slide.

    Parameters
    ----------
    slide_size_px0 : (int, int)
        (width, height) of level 0.
    side, stride : (float, float)
        Patch side and distance between neighbours in level-0 pixels, (x, y).

    Returns
    -------
    columns, rows : ndarray of int64, (n,) and (m,)
        x of each column and y of each row in level-0 pixels.

    Examples
    --------
    >>> columns, rows = grid_corners_px0((1000, 600), (224.0, 224.0), (224.0, 224.0))
    >>> columns.tolist(), rows.tolist()
    ([0, 224, 448, 672], [0, 224, 448])
    """
    columns, rows = (
        np.rint(np.arange(max(1, math.ceil((extent - side_ / 2) / step))) * step).astype(np.int64)
        for extent, side_, step in zip(slide_size_px0, side, stride, strict=True)
    )
    return columns, rows


def box_fractions(mask: np.ndarray, mask_side_px0: Pair, xy_px0: Int64, side: Pair) -> Float64:
    """Exact fraction of each footprint that a mask covers.

    The mask is constant on each of its pixels, so its summed-area table, read bilinearly, is the exact integral.

    Parameters
    ----------
    mask : ndarray of bool, (h, w)
        Raster whose (0, 0) is the slide's (0, 0).
    mask_side_px0 : (float, float)
        Width and height of one mask pixel in level-0 pixels.
    xy_px0 : ndarray of int64, (N, 2)
        Top-left corners of the footprints in level-0 pixels.
    side : (float, float)
        Width and height of each footprint in level-0 pixels.

    Returns
    -------
    ndarray of float64, (N,)
        Fractions from 0 to 1; the area outside the mask is not covered.
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
