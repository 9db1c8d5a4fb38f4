"""Read all patches of a grid in batches, in its order: threads read ahead, and each stored tile is decoded once.

Memory depends on the batch, the threads and ``tile_cache_mb``, never on the slide. The pixels depend on none of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np

from ..errors import RegionError
from ..types import Bool, PatchGrid, Slide, UInt8
from .memory import Recycled
from .patch_geometry import patch_level, patch_tiles, read_patch
from .tile_cache import TileCache

_CHUNK = 16  # patches that a thread reads at a time
Allocate = Callable[[tuple[int, ...]], UInt8]


class Batch(NamedTuple):
    """Consecutive patches of the grid.

    Attributes
    ----------
    readable : ndarray of bool, (n,)
        Which of the n patches could be read.
    pixels : ndarray of uint8, (m, s, s, 3)
        The m readable ones.
    """

    readable: Bool  # (n,)
    pixels: UInt8  # (m, s, s, 3)


class _Source(Protocol):
    """Reads patches of the grid."""

    def submit(self, rows: range, pixels: UInt8) -> Future[list[bool]]:
        """Begin to fill ``pixels`` with the patches ``rows``; returns which are readable. Called in order."""
        ...


class Batches:
    """Iterator over a grid's patches, batch by batch, that starts reading when it is created.

    Call ``close`` to stop its threads early. At most ``prefetch_depth(batch, threads)`` batches are in memory or being
    read. A patch whose pixels raise ``RegionError`` is left out. Created by ``read_batches``.
    """

    def __init__(
        self, grid: PatchGrid, batch: int, threads: int, allocate: Allocate, source: Callable[[Executor], _Source]
    ) -> None:
        self._grid, self._batch, self._allocate = grid, batch, allocate
        self._depth = prefetch_depth(batch, threads)
        self._pool = ThreadPoolExecutor(threads)
        self._source = source(self._pool)
        self._starts = iter(range(0, len(grid), batch))
        self._pending: deque[tuple[UInt8, list[Future[list[bool]]]]] = deque()
        self._read_ahead()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Wait for the next batch."""
        if not self._pending:
            self.close()
            raise StopIteration
        pixels, chunks = self._pending[0]
        readable = np.array([one for chunk in chunks for one in chunk.result()], bool)
        self._pending.popleft()
        self._read_ahead()
        return Batch(readable, pixels if readable.all() else pixels[readable])

    def close(self) -> None:
        """Stop the threads. At the end of the grid they stop by themselves."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        while len(self._pending) < self._depth and (start := next(self._starts, None)) is not None:
            rows = range(start, min(start + self._batch, len(self._grid)))
            pixels = self._allocate((len(rows), self._grid.side_px, self._grid.side_px, 3))  # (n, s, s, 3)
            chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
            done = [self._source.submit(c, pixels[c.start - start : c.stop - start]) for c in chunks]
            self._pending.append((pixels, done))


def read_batches(
    slide: Slide,
    grid: PatchGrid,
    *,
    batch: int,
    threads: int,
    scaling: str = "exact",
    tile_cache_mb: int = 512,
    allocate: Allocate | None = None,
) -> Batches:
    """Read all patches of a grid in batches, in its order.

    Parameters
    ----------
    slide : Slide
        The open slide; it must stay open until the iterator is exhausted or closed.
    grid : PatchGrid
        N patches of ``grid.side_px`` pixels.
    batch : int
        Patches per batch; the last batch may be smaller.
    threads : int
        Threads that read.
    scaling : {"exact", "dct"}
        See ``ReadConfig.scaling``.
    tile_cache_mb : int
        Megabytes of decoded tiles to keep. If a row of patches needs more, tiles are decoded again.
    allocate : callable, optional
        Creates the array of each batch from its shape, for example in pinned memory.

    Returns
    -------
    Batches
        Iterator over ``Batch``.
    """
    tiles = patch_tiles(slide, grid, scaling)

    def source(pool: Executor) -> _Source:
        return _PatchReader(slide, grid, pool) if tiles is None else TileCache(tiles, grid, pool, tile_cache_mb)

    return Batches(grid, batch, threads, allocate or Recycled(), source)


def prefetch_depth(batch: int, threads: int) -> int:
    """The most batches that are read at once: enough for two chunks of patches per thread."""
    return 1 + -(-2 * threads * _CHUNK // batch)


@dataclass(frozen=True)
class _PatchReader:
    """Reads patch by patch through the slide's reader."""

    slide: Slide
    grid: PatchGrid
    pool: Executor

    def submit(self, rows: range, pixels: UInt8) -> Future[list[bool]]:
        return self.pool.submit(self._read, rows, pixels, patch_level(self.slide, self.grid))

    def _read(self, rows: range, pixels: UInt8, level: int) -> list[bool]:
        grid, readable = self.grid, [True] * len(rows)
        for i, (x, y) in enumerate(grid.xy_px0[rows.start : rows.stop].tolist()):
            try:
                pixels[i] = read_patch(self.slide, (x, y), grid.side_px0, grid.side_px, level)
            except RegionError:
                readable[i] = False
        return readable
