"""A map over a picture of its slide, on matplotlib axes whose units are level-0 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from ..heatmap.paint import paint_block, raster_shape
from ..read import read_overview
from ..types import Box, Float32, PatchGrid, Slide, TissueMask, UInt8
from ..view.pictures import SIGNED, UNSIGNED
from .arguments import require_opened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THUMBNAIL_PX = 1024  # longer side of the picture below a map
_GLASS, _TISSUE = 255, 225  # grey values of a tissue mask that stands in for the picture


@dataclass(frozen=True, eq=False)
class Raster:
    """A map as cells that begin at the slide's pixel (0, 0)."""

    values: Float32  # (rows, columns), NaN where there is no patch
    cell_px0: float
    slide_size_px0: tuple[int, int]
    bounds_px0: Box  # what is shown
    window: tuple[float, float]  # values at which the colours begin and end
    signed: bool
    title: str
    unit: str


def raster_of(grid: PatchGrid, scores: Float32) -> tuple[Float32, int]:
    """Paint scores (N,) on cells of half a patch: (rows, columns), and level-0 pixels per cell."""
    cell_px0 = max(1, math.floor(min(*grid.stride_px0, *grid.side_px0) / 2))
    rows, columns = raster_shape(grid.slide_size_px0, cell_px0)
    return paint_block(grid, scores[None], cell_px0, 0, 0, rows, columns)[0], cell_px0


def picture_of(over: Slide | UInt8) -> UInt8:
    """A picture of the whole slide, (h, w, 3)."""
    require_opened(over, "plot(over=…)", "an open slide or a picture", "open_slide(path)")
    return over if isinstance(over, np.ndarray) else read_overview(over, max_px=THUMBNAIL_PX).rgb


def picture_of_tissue(mask: TissueMask) -> UInt8:
    """Tissue in light grey on white, (h, w, 3): what is left where no picture of the slide can be had."""
    grey = np.where(mask.tissue, _TISSUE, _GLASS).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def draw(raster: Raster, picture: UInt8 | None, ax: Axes | None, *, alpha: float, colorbar: bool) -> Axes:
    """Draw ``raster`` over ``picture`` (h, w, 3), which covers the whole slide; new axes where ``ax`` is None."""
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    width, height = raster.slide_size_px0
    if picture is not None:
        ax.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
    rows, columns = raster.values.shape
    image = ax.imshow(
        np.ma.masked_invalid(raster.values),
        extent=(0, columns * raster.cell_px0, rows * raster.cell_px0, 0),
        cmap=SIGNED if raster.signed else UNSIGNED,
        vmin=raster.window[0],
        vmax=raster.window[1],
        alpha=alpha if picture is not None else 1.0,
        interpolation="nearest",
    )
    x, y, shown_width, shown_height = raster.bounds_px0
    ax.set_xlim(x, x + shown_width)
    ax.set_ylim(y + shown_height, y)
    ax.set_axis_off()
    ax.set_title(raster.title)
    if colorbar:
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, label=raster.unit)
        if bar.solids is not None:
            bar.solids.set_alpha(1.0)
    return ax
