"""Choice of the pyramid level for a grid's patches, and reading of one patch."""

from __future__ import annotations

from ..geometry import LEVEL_TOLERANCE, best_level, window
from ..types import PatchGrid, Slide, UInt8
from .jpeg_tiles import SCALES, TileLevel
from .resample import area_mean
from .slide import tile_levels


def patch_level(slide: Slide, grid: PatchGrid) -> int:
    """Index of the coarsest level of ``slide`` that is at least as fine as the grid's target mpp."""
    return best_level(slide.downsamples, _target_downsample(grid))


def patch_tiles(slide: Slide, grid: PatchGrid, scaling: str) -> TileLevel | None:
    """Stored tiles of that level, shrunk as far as each tile can be on its own.

    Parameters
    ----------
    slide : Slide
        The open slide.
    grid : PatchGrid
        The patches.
    scaling : {"exact", "dct"}
        With "dct", tiles are shrunk while they are decoded, as long as they stay fine enough. With both, a tile is
        then averaged over squares if each pixel of a patch is the mean of such a square inside one tile.

    Returns
    -------
    TileLevel or None
        None if the slide's reader does not give access to stored tiles.
    """
    levels = tile_levels(slide)
    if not levels:
        return None
    level = levels[patch_level(slide, grid)]
    if scaling == "dct":
        coarsest = _target_downsample(grid) * LEVEL_TOLERANCE
        level = level.scaled(max(s for s in SCALES if s == 1 or level.downsample * s <= coarsest))
    return level.averaged(_whole_squares(level, grid))


def read_patch(slide: Slide, xy_px0: tuple[int, int], side_px0: tuple[float, float], side_px: int, level: int) -> UInt8:
    """Read one patch: the exact mean over each pixel's footprint, white outside the slide.

    Parameters
    ----------
    slide : Slide
        The open slide.
    xy_px0 : (int, int)
        Top-left corner in level-0 pixels.
    side_px0 : (float, float)
        Width and height of the footprint in level-0 pixels.
    side_px : int
        Side of the output in pixels.
    level : int
        Level to read, see ``patch_level``.

    Returns
    -------
    ndarray of uint8, (side_px, side_px, 3)
        RGB.

    Raises
    ------
    RegionError
        The region cannot be decoded.
    """
    part = window(xy_px0, side_px0, level, slide.downsamples[level])
    return area_mean(slide.read(part.xy_px0, level, part.size), part.box, (side_px, side_px))


def _target_downsample(grid: PatchGrid) -> float:
    """Level-0 pixels per pixel of a patch."""
    return min(grid.side_px0) / grid.side_px


def _whole_squares(level: TileLevel, grid: PatchGrid) -> int:
    """n if the grid's pixels are squares of n x n pixels of ``level`` and none lies across two tiles; else 1."""
    pixel = _target_downsample(grid)  # in level-0 pixels
    by = pixel / level.downsample
    square = grid.side_px0[0] == grid.side_px0[1]
    whole = square and level.downsample.is_integer() and by.is_integer() and not any(s % by for s in level.tile)
    return int(by) if whole and not (grid.xy_px0 % int(pixel)).any() else 1
