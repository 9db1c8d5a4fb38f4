"""One patch of the grid, from the level that is just fine enough."""

from __future__ import annotations

from ..geometry import LEVEL_TOLERANCE, best_level, window
from ..types import PatchGrid, Slide, UInt8
from .jpeg_tiles import SCALES, TileLevel
from .resample import area_mean
from .slide import tile_levels


def patch_level(slide: Slide, grid: PatchGrid) -> int:
    """The coarsest level of ``slide`` that is still as fine as the grid's target mpp."""
    return best_level(slide.downsamples, _wanted(grid))


def patch_tiles(slide: Slide, grid: PatchGrid, scaling: str) -> TileLevel | None:
    """The tiles of that level, shrunk as far as each can be on its own.

    With ``scaling`` dct while they are decoded, as long as they stay fine enough; then, either way, where each pixel
    of a patch is the mean of a whole square of pixels of one tile. None where the slide's reader has no tiles.
    """
    levels = tile_levels(slide)
    if not levels:
        return None
    level = levels[patch_level(slide, grid)]
    if scaling == "dct":
        wanted = _wanted(grid) * LEVEL_TOLERANCE
        level = level.scaled(max(s for s in SCALES if s == 1 or level.downsample * s <= wanted))
    return level.averaged(_whole_squares(level, grid))


def read_patch(slide: Slide, xy_px0: tuple[int, int], side_px0: tuple[float, float], side_px: int, level: int) -> UInt8:
    """The footprint ``xy_px0`` + ``side_px0`` as (side_px, side_px, 3) pixels, read at ``level``.

    White outside the slide. Raises ``RegionError`` where the file cannot be decoded.
    """
    part = window(xy_px0, side_px0, level, slide.downsamples[level])
    return area_mean(slide.read(part.xy_px0, level, part.size), part.box, (side_px, side_px))


def _wanted(grid: PatchGrid) -> float:
    """Level-0 pixels per pixel of a patch."""
    return min(grid.side_px0) / grid.side_px


def _whole_squares(level: TileLevel, grid: PatchGrid) -> int:
    """n where the grid's pixels are squares of n x n pixels of ``level`` and none lies across two tiles; else 1."""
    pixel = _wanted(grid)  # in level-0 pixels, like the next two
    by = pixel / level.downsample
    square = grid.side_px0[0] == grid.side_px0[1]
    whole = square and level.downsample.is_integer() and by.is_integer() and not any(s % by for s in level.tile)
    return int(by) if whole and not (grid.xy_px0 % int(pixel)).any() else 1
