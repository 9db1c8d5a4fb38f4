"""From patch scores to the cells of a raster: the arithmetic, without files.

The raster starts at the slide's pixel (0, 0) and is never cropped, since viewers that ignore a translation would shift
it. Cell (row, column) covers ``cell_px0`` x ``cell_px0`` level-0 pixels; its value is the mean score of the patches
whose footprint [x, x + side) x [y, y + side) contains the cell's centre, NaN where none does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..types import Float32, Float64, Int64, PatchGrid

LARGEST_CELL_PX0 = 32


def cell_side_px0(grid: PatchGrid, wanted: int | None) -> int:
    """Side of a cell in level-0 pixels.

    Parameters
    ----------
    grid : PatchGrid
    wanted : int or None
        The configured side; None: the largest power of two up to 32 and to half the stride and side of the patches.

    Raises
    ------
    ConfigError
        Where the wanted cell is larger than half a patch, so that patches would be lost between the cells.

    Notes
    -----
    With cells of at most half a patch, the cell that contains a patch's centre has its own centre in that patch and, on
    grids without overlap and patches of 2 pixels or more, in no other: it has that patch's score unchanged.
    """
    if wanted is None:
        half = min(*grid.stride_px0, *grid.side_px0) / 2
        return min(LARGEST_CELL_PX0, 2 ** max(0, math.floor(math.log2(half)))) if half >= 1 else 1
    limit = max(1, math.floor(min(grid.side_px0) / 2))
    if wanted > limit:
        raise ConfigError(
            f"heatmap.cell_px0 = {wanted} is more than half a patch of slide {grid.slide_id} "
            f"({min(grid.side_px0):.4g} px); give at most {limit}, or leave it out"
        )
    return wanted


def raster_shape(slide_size_px0: tuple[int, int], cell_px0: int) -> tuple[int, int]:
    """(rows, columns) of cells that cover a slide of (width, height) level-0 pixels.

    >>> raster_shape((6401, 3201), 32)
    (101, 201)
    """
    width, height = slide_size_px0
    return math.ceil(height / cell_px0), math.ceil(width / cell_px0)


def paint_block(grid: PatchGrid, scores: Float32, cell_px0: int, row0: int, col0: int, rows: int, cols: int) -> Float32:
    """Paint one block of the raster.

    Parameters
    ----------
    grid : PatchGrid
    scores : array (C, N)
        C channels of one score per patch.
    cell_px0 : int
        Side of a cell in level-0 pixels.
    row0, col0, rows, cols : int
        The block [row0, row0 + rows) x [col0, col0 + cols) of cells.

    Returns
    -------
    float32 array (C, rows, cols)
        Bit for bit the same as that part of the whole raster; NaN where there is no patch.
    """
    x_px0 = (col0 + np.arange(cols) + 0.5) * cell_px0  # (cols,) centres
    y_px0 = (row0 + np.arange(rows) + 0.5) * cell_px0  # (rows,)
    sums = np.zeros((len(scores), rows, cols))
    counts = np.zeros((rows, cols), np.int32)
    for patch, left, right, top, bottom in _spans(grid, x_px0, y_px0):
        sums[:, top:bottom, left:right] += scores[:, patch, None, None]
        counts[top:bottom, left:right] += 1
    return _mean(sums, counts)


def halve(block: Float32) -> Float32:
    """Mean of the values in each 2 x 2 cells that are not NaN: (C, r, c) -> (C, ceil(r / 2), ceil(c / 2)).

    An odd last row or column is padded with NaN, so that nothing is stretched.
    """
    channels, rows, cols = block.shape
    even = np.full((channels, rows + rows % 2, cols + cols % 2), np.nan)
    even[:, :rows, :cols] = block
    quarters = [even[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]  # 4 x (C, r', c')
    sums = np.zeros_like(quarters[0])
    counts = np.zeros(sums.shape, np.int32)
    for quarter in quarters:
        defined = ~np.isnan(quarter)
        sums += np.where(defined, quarter, 0.0)
        counts += defined
    return _mean(sums, counts)


def _spans(grid: PatchGrid, x_px0: NDArray[np.floating], y_px0: NDArray[np.floating]) -> Int64:
    """(patch, left, right, top, bottom) of every patch that contains a centre of the block, in grid order: (n, 5).

    Only the patches whose rows touch the block are considered, since the grid is sorted by y.
    """
    side_x, side_y = grid.side_px0
    corner_y = grid.xy_px0[:, 1]
    first = int(np.searchsorted(corner_y, y_px0[0] - side_y, side="left"))
    stop = int(np.searchsorted(corner_y, y_px0[-1], side="right"))
    x, y = grid.xy_px0[first:stop, 0], corner_y[first:stop]
    spans = np.stack(
        [
            np.arange(first, stop),
            np.searchsorted(x_px0, x, side="left"),
            np.searchsorted(x_px0, x + side_x, side="left"),
            np.searchsorted(y_px0, y, side="left"),
            np.searchsorted(y_px0, y + side_y, side="left"),
        ],
        axis=1,
    )  # (n, 5)
    touching: Int64 = spans[(spans[:, 1] < spans[:, 2]) & (spans[:, 3] < spans[:, 4])]
    return touching


def _mean(sums: Float64, counts: np.ndarray) -> Float32:
    mean = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=mean, where=np.broadcast_to(counts > 0, sums.shape))
    return mean.astype(np.float32)
