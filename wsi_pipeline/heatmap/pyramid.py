"""Fill Zarr arrays block by block, so that memory depends on the chunk, not on the slide.

Each level is computed from the one below, read from disk, so a slide of 100,000 x 100,000 pixels needs no more memory
than one chunk of its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import zarr

from ..types import Float32, PatchGrid
from .paint import halve, paint_block

SMALLEST_SIDE = 256  # the coarsest level is at most this large

# (row0, row1, col0, col1) -> the cells [row0, row1) x [col0, col1) of every channel, (C, row1 - row0, col1 - col0).
Block = Callable[[int, int, int, int], Float32]


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of each level: halved, rounded up, until the larger side is at most 256.

    >>> level_shapes((3, 1025))
    [(3, 1025), (2, 513), (1, 257), (1, 129)]
    """
    shapes = [shape]
    while max(shapes[-1]) > SMALLEST_SIDE:
        rows, cols = shapes[-1]
        shapes.append(((rows + 1) // 2, (cols + 1) // 2))
    return shapes


def fill(levels: Sequence[zarr.Array[Any]], grid: PatchGrid, scores: Float32, cell_px0: int) -> None:
    """Paint ``scores`` (C, N) into ``levels[0]`` (C, rows, cols) and fill the others by halving the one below."""

    def paint(row0: int, row1: int, col0: int, col1: int) -> Float32:
        return paint_block(grid, scores, cell_px0, row0, col0, row1 - row0, col1 - col0)

    _store(levels[0], paint)
    for below, level in pairwise(levels):
        _store(level, _halves(below))


def _halves(below: zarr.Array[Any]) -> Block:
    def block(row0: int, row1: int, col0: int, col1: int) -> Float32:
        return halve(np.asarray(below[:, 2 * row0 : 2 * row1, 2 * col0 : 2 * col1]))

    return block


def _store(level: zarr.Array[Any], block: Block) -> None:
    """Write one block of all channels at a time."""
    _, rows, cols = level.shape
    _, chunk_rows, chunk_cols = level.chunks
    for row0 in range(0, rows, chunk_rows):
        for col0 in range(0, cols, chunk_cols):
            row1, col1 = min(row0 + chunk_rows, rows), min(col0 + chunk_cols, cols)
            level[:, row0:row1, col0:col1] = block(row0, row1, col0, col1)
