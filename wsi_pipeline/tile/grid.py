"""The grid of patches on a tissue mask: lengths in µm to level-0 pixels. Opens no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import TileConfig
from ..errors import EmptySlideError, SlideError
from ..geometry import LEVEL_TOLERANCE, box_fractions, grid_corners_px0, side_px0
from ..types import Bool, Box, Int64, PatchGrid, Slide, TissueMask


@dataclass(frozen=True)
class SlideFacts:
    """Properties of a slide that the grid depends on."""

    slide_id: str
    size_px0: tuple[int, int]
    mpp: tuple[float, float]
    bounds_px0: Box

    @classmethod
    def of(cls, slide_id: str, slide: Slide) -> SlideFacts:
        """From an open slide."""
        return cls(slide_id, slide.sizes[0], slide.mpp, slide.bounds_px0)


def check_resolution(slide: SlideFacts, config: TileConfig) -> None:
    """Raise ``SlideError`` if patches would have to be enlarged to reach the target mpp."""
    coarsest = max(slide.mpp)
    if coarsest > config.mpp * LEVEL_TOLERANCE:
        raise SlideError(
            f"{slide.slide_id} has {coarsest:.4g} µm/px, coarser than the {config.mpp:.4g} µm/px of tile.mpp: its "
            f"patches would be enlarged; --set tile.mpp={coarsest:.4g}, or leave the slide out"
        )


def patch_grid(slide: SlideFacts, mask: TissueMask, config: TileConfig) -> PatchGrid:
    """Select the patches of the regular grid from (0, 0) that contain enough tissue.

    A patch is kept if the mask covers at least ``config.min_tissue`` of its exact footprint (with 0: if it covers any
    of it), and if it touches no unreadable region.

    Parameters
    ----------
    slide : SlideFacts
        Size, resolution and bounds of the slide.
    mask : TissueMask
        The tissue.
    config : TileConfig
        The config section ``tile``.

    Returns
    -------
    PatchGrid
        The patches in row-major order, possibly none.

    Raises
    ------
    SlideError
        The slide is coarser than the target mpp.
    """
    check_resolution(slide, config)
    side = side_px0(config.side_px, config.mpp, slide.mpp)
    stride = side[0] * (1 - config.overlap), side[1] * (1 - config.overlap)
    columns, rows = grid_corners_px0(slide.size_px0, side, stride)
    xy_px0 = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)  # (rows * columns, 2)
    covered = box_fractions(mask.tissue, mask.side_px0, xy_px0, side)  # (rows * columns,)
    keep = (covered >= config.min_tissue - 1e-9) & (covered > 1e-9)
    for box in mask.unreadable_px0:
        keep &= ~_touches(xy_px0, side, box)
    return PatchGrid(
        slide_id=slide.slide_id,
        xy_px0=xy_px0[keep],
        side_px=config.side_px,
        side_px0=side,
        stride_px0=stride,
        target_mpp=config.mpp,
        mpp=slide.mpp,
        slide_size_px0=slide.size_px0,
        bounds_px0=slide.bounds_px0,
    )


def require_patches(grid: PatchGrid, mask: TissueMask, config: TileConfig) -> None:
    """Raise ``EmptySlideError`` if the grid has no patch, stating what was found and what to try."""
    if len(grid):
        return
    percent = float(mask.tissue.mean()) * 100
    lost = " outside the unreadable regions" if mask.unreadable_px0 else ""
    region = " inside the region of interest" if config.roi else ""
    if percent == 0:
        raise EmptySlideError(
            f"{grid.slide_id} has no tissue{region}{lost}; look at tile/quality/{grid.slide_id}.jpg, try --set "
            f"tile.detector_options.faint=true, or draw it in tile/tissue/{grid.slide_id}.geojson"
        )
    raise EmptySlideError(
        f"{grid.slide_id}: tissue covers {percent:.2g} % of the slide{region}, but no patch{lost} is covered to "
        f"{config.min_tissue:.0%}; lower tile.min_tissue or tile.side_px"
    )


def _touches(xy_px0: Int64, side: tuple[float, float], box: Box) -> Bool:
    """(N,) whether the footprints intersect ``box``."""
    x, y, width, height = box
    right, bottom = xy_px0[:, 0] + side[0], xy_px0[:, 1] + side[1]
    touched: Bool = (right > x) & (bottom > y) & (xy_px0[:, 0] < x + width) & (xy_px0[:, 1] < y + height)
    return touched
