"""One patch of the grid, from the level that is just fine enough."""

from __future__ import annotations

from ..geometry import best_level, window
from ..types import PatchGrid, Slide, UInt8
from .resample import area_mean


def patch_level(slide: Slide, grid: PatchGrid) -> int:
    """The coarsest level of ``slide`` that is still as fine as the grid's target mpp."""
    return best_level(slide.downsamples, min(grid.side_px0) / grid.side_px)


def read_patch(slide: Slide, xy_px0: tuple[int, int], side_px0: tuple[float, float], side_px: int, level: int) -> UInt8:
    """The footprint ``xy_px0`` + ``side_px0`` as (side_px, side_px, 3) pixels, read at ``level``.

    White outside the slide. Raises ``RegionError`` where the file cannot be decoded.
    """
    part = window(xy_px0, side_px0, level, slide.downsamples[level])
    return area_mean(slide.read(part.xy_px0, level, part.size), part.box, (side_px, side_px))
