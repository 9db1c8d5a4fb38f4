"""Low-resolution overview of a slide, read block by block: memory depends on the output, never on the slide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..errors import RegionError, SlideError
from ..geometry import best_level, um_to_px0, window
from ..types import Box, Slide, UInt8
from .resample import area_mean

BLOCK_PX = 2048  # side of the largest block in memory, level pixels
SMALLEST_PX = 256  # an unreadable block is split down to this, about one tile of the file
MAX_PIXELS = 2**26  # 200 MB

Part = tuple[int, int, int, int]  # columns x0 to x1, rows y0 to y1 of the overview, as (x0, y0, x1, y1)


class Overview(NamedTuple):
    """A raster whose (0, 0) is the slide's (0, 0).

    Attributes
    ----------
    rgb : ndarray of uint8, (h, w, 3)
        White outside the slide and in unreadable regions.
    side_px0 : (float, float)
        Width and height of one pixel in level-0 pixels.
    unreadable_px0 : tuple of (int, int, int, int)
        Boxes (x, y, width, height) in level-0 pixels that could not be decoded.
    """

    rgb: UInt8  # (h, w, 3)
    side_px0: tuple[float, float]
    unreadable_px0: tuple[Box, ...]


def read_overview(slide: Slide, *, mpp: float | None = None, max_px: int | None = None) -> Overview:
    """Read the whole slide at low resolution. Each pixel is the exact mean over its footprint in the best level.

    Parameters
    ----------
    slide : Slide
        The open slide.
    mpp : float, optional
        µm per pixel of the overview; never finer than level 0. Give this or ``max_px``.
    max_px : int, optional
        Largest side of the overview in pixels.

    Returns
    -------
    Overview
        The raster and its unreadable regions.

    Raises
    ------
    SlideError
        Nothing can be decoded, or the overview would not fit in memory.
    """
    side = _side_px0(slide, mpp, max_px)
    width, height = (math.ceil(extent / s - 1e-9) for extent, s in zip(slide.sizes[0], side, strict=True))
    if width * height > MAX_PIXELS:
        raise SlideError(
            f"{slide.path.name}: an overview of {width} x {height} pixels is too large; use a coarser one "
            f"(tile.tissue_mpp)"
        )
    level = best_level(slide.downsamples, min(side))
    rgb = np.full((height, width, 3), 255, np.uint8)
    unreadable: list[Box] = []
    last: RegionError | None = None
    for x0, y0, x1, y1 in _blocks((width, height), side, slide.downsamples[level]):
        for part, pixels in _read_part(slide, (x0, y0, x1, y1), side, level):
            if isinstance(pixels, RegionError):
                unreadable.append(_box_px0(part, side, slide.sizes[0]))
                last = pixels
            else:
                rgb[part[1] : part[3], part[0] : part[2]] = pixels
    if last is not None and sum(w * h for _, _, w, h in unreadable) >= math.prod(slide.sizes[0]):
        raise SlideError(f"{slide.path.name}: nothing of level {level} can be decoded; copy it again ({last})")
    return Overview(rgb, side, tuple(unreadable))


def _side_px0(slide: Slide, mpp: float | None, max_px: int | None) -> tuple[float, float]:
    if (mpp is None) == (max_px is None):
        raise ValueError("give mpp or max_px")
    if mpp is not None:
        x, y = um_to_px0(mpp, slide.mpp)
        return max(x, 1.0), max(y, 1.0)
    factor = max(1.0, max(slide.sizes[0]) / (max_px or 1))
    return factor, factor


def _blocks(size: tuple[int, int], side: tuple[float, float], downsample: float) -> Iterator[Part]:
    """The overview in parts whose footprint in the level is at most ``BLOCK_PX`` a side."""
    width, height = size
    step_x, step_y = (max(1, math.floor((BLOCK_PX - 2) * downsample / s)) for s in side)
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield x, y, min(x + step_x, width), min(y + step_y, height)


def _read_part(
    slide: Slide, part: Part, side: tuple[float, float], level: int
) -> Iterator[tuple[Part, UInt8 | RegionError]]:
    """The part's pixels; if they cannot be decoded, quarter by quarter, so that little is lost."""
    x0, y0, x1, y1 = part
    corner = math.floor(x0 * side[0]), math.floor(y0 * side[1])
    footprint = x1 * side[0] - corner[0], y1 * side[1] - corner[1]
    region = window(corner, footprint, level, slide.downsamples[level])
    try:
        pixels = slide.read(region.xy_px0, level, region.size)
    except RegionError as error:
        middle_x, middle_y = (x0 + x1) // 2, (y0 + y1) // 2
        if max(region.size) <= SMALLEST_PX or (middle_x, middle_y) == (x0, y0):
            yield part, error
            return
        quarters = [
            (a, b, c, d) for a, c in ((x0, middle_x), (middle_x, x1)) for b, d in ((y0, middle_y), (middle_y, y1))
        ]
        for quarter in quarters:
            if quarter[0] < quarter[2] and quarter[1] < quarter[3]:
                yield from _read_part(slide, quarter, side, level)
        return
    downsample = slide.downsamples[level]
    left, top = ((e - c) / downsample for e, c in zip((x0 * side[0], y0 * side[1]), corner, strict=True))
    box = (region.box[0] + left, region.box[1] + top, region.box[2], region.box[3])
    yield part, area_mean(pixels, box, (x1 - x0, y1 - y0))


def _box_px0(part: Part, side: tuple[float, float], size_px0: tuple[int, int]) -> Box:
    """The level-0 pixels that a part of the overview touches."""
    x, y = math.floor(part[0] * side[0]), math.floor(part[1] * side[1])
    right, bottom = min(math.ceil(part[2] * side[0]), size_px0[0]), min(math.ceil(part[3] * side[1]), size_px0[1])
    return x, y, right - x, bottom - y
