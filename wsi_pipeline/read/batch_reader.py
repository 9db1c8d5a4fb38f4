"""All patches of a grid, batch by batch, in its order: read ahead by threads, each stored tile decoded once.

Memory follows the batch, the threads and ``tile_cache_mb``, never the slide. Neither the number of threads nor the
memory changes a pixel.
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
from .tile_cache import Tiled

_CHUNK = 16  # patches that a thread reads at a time
Allocate = Callable[[tuple[int, ...]], UInt8]


class Batch(NamedTuple):
    """Consecutive patches of the grid, as read."""

    readable: Bool  # (n,)
    pixels: UInt8  # (m, s, s, 3), the m readable ones


class _Source(Protocol):
    """Reads patches of the grid."""

    def submit(self, rows: range, pixels: UInt8) -> Future[list[bool]]:
        """Begin to fill ``pixels`` with the patches ``rows``; gives which of them are readable. Called in order."""
        ...


class Batches:
    """An iterator over a grid's patches, batch by batch, that begins to read as soon as it is made.

    Close it to stop its threads early. At most ``batches_ahead(batch, threads)`` batches are begun and not given
    back. A patch whose pixels raise ``RegionError`` is left out.
    """

    def __init__(
        self, grid: PatchGrid, batch: int, threads: int, allocate: Allocate, source: Callable[[Executor], _Source]
    ) -> None:
        self._grid, self._batch, self._allocate = grid, batch, allocate
        self._ahead = batches_ahead(batch, threads)
        self._pool = ThreadPoolExecutor(threads)
        self._source = source(self._pool)
        self._starts = iter(range(0, len(grid), batch))
        self._waiting: deque[tuple[UInt8, list[Future[list[bool]]]]] = deque()
        self._read_ahead()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch: which of its n patches are readable (n,), and their pixels (m, s, s, 3)."""
        if not self._waiting:
            self.close()
            raise StopIteration
        pixels, chunks = self._waiting[0]
        readable = np.array([one for chunk in chunks for one in chunk.result()], bool)
        self._waiting.popleft()
        self._read_ahead()
        return Batch(readable, pixels if readable.all() else pixels[readable])

    def close(self) -> None:
        """Stop the threads. They stop by themselves at the end."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        while len(self._waiting) < self._ahead and (start := next(self._starts, None)) is not None:
            rows = range(start, min(start + self._batch, len(self._grid)))
            pixels = self._allocate((len(rows), self._grid.side_px, self._grid.side_px, 3))  # (n, s, s, 3)
            chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
            done = [self._source.submit(c, pixels[c.start - start : c.stop - start]) for c in chunks]
            self._waiting.append((pixels, done))


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
    """All patches of ``grid``, ``batch`` at a time, in its order.

    ``scaling``: see ``ReadConfig``. ``tile_cache_mb``: megabytes of decoded tiles that are kept; with fewer than a row
    of patches needs, tiles are decoded again. ``allocate`` makes each batch's array, if it must be a special one.
    """
    tiles = patch_tiles(slide, grid, scaling)

    def source(pool: Executor) -> _Source:
        return _Plain(slide, grid, pool) if tiles is None else Tiled(tiles, grid, pool, tile_cache_mb)

    return Batches(grid, batch, threads, allocate or Recycled(), source)


def batches_ahead(batch: int, threads: int) -> int:
    """The most batches that are being read at once: enough to give every thread two chunks of patches."""
    return 1 + -(-2 * threads * _CHUNK // batch)


@dataclass(frozen=True)
class _Plain:
    """Patch by patch, through the slide's reader."""

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
