"""All patches of a grid, batch by batch, in its order: read ahead by threads, each stored tile decoded once.

What is in memory follows the batch, the threads and ``tile_mb``, never the slide. Neither the number of threads nor
the memory changes a pixel.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np

from ..errors import RegionError
from ..geometry import Window, window
from ..types import Bool, PatchGrid, Slide, UInt8
from .patches import patch_level, patch_tiles, read_patch
from .resample import area_mean
from .tiles import TileLevel, assemble

_CHUNK = 8  # patches that a thread cuts at a time
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

    def flush(self) -> None:
        """No more rows come."""
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
            if rows.stop == len(self._grid):
                self._source.flush()


def read_batches(
    slide: Slide,
    grid: PatchGrid,
    *,
    batch: int,
    threads: int,
    scaling: str = "exact",
    tile_mb: int = 512,
    allocate: Allocate = lambda shape: np.empty(shape, np.uint8),
) -> Batches:
    """All patches of ``grid``, ``batch`` at a time, in its order.

    ``scaling``: see ``ReadConfig``. ``tile_mb``: decoded tiles that are kept, in megabytes; with fewer than a row of
    patches needs, tiles are decoded again. ``allocate`` makes each batch's array.
    """
    tiles = patch_tiles(slide, grid, scaling)

    def source(pool: Executor) -> _Source:
        return _Plain(slide, grid, pool) if tiles is None else _Tiled(tiles, grid, pool, threads, tile_mb)

    return Batches(grid, batch, threads, allocate, source)


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

    def flush(self) -> None: ...

    def _read(self, rows: range, pixels: UInt8, level: int) -> list[bool]:
        grid, readable = self.grid, [True] * len(rows)
        for i, (x, y) in enumerate(grid.xy_px0[rows.start : rows.stop].tolist()):
            try:
                pixels[i] = read_patch(self.slide, (x, y), grid.side_px0, grid.side_px, level)
            except RegionError:
                readable[i] = False
        return readable


class _Tile:
    """A tile that is decoded or will be, and how many patches still have to be cut from it."""

    def __init__(self, number: int, pixels: UInt8) -> None:
        self.number = number
        self.pixels = pixels
        self.done: Future[None] | None = None  # of all tiles that were asked for with it
        self.error: RegionError | None = None
        self.waiting = 0
        self.dropped = False


class _Cut(NamedTuple):
    """One patch: its window in the level, the level pixel it starts at, and the tiles it touches, by number."""

    part: Window
    start: tuple[int, int]
    tiles: dict[int, _Tile]


class _Tiled:
    """Tiles are decoded as the patches come to them and kept until the grid's rows have passed them.

    ``submit`` runs in one thread. Cuts are held back until the tiles of the next ``threads`` chunks have been given to
    the pool, so that no thread waits for tiles that another is decoding while there is something to decode.
    """

    def __init__(self, level: TileLevel, grid: PatchGrid, pool: Executor, threads: int, tile_mb: int) -> None:
        self._level, self._grid, self._pool, self._threads = level, grid, pool, threads
        self._held: deque[tuple[Future[list[bool]], list[_Cut], UInt8]] = deque()
        self._shape = (level.tile[1], level.tile[0], 3)
        self._most = max(1, tile_mb * 2**20 // int(np.prod(self._shape)))
        self._live: dict[int, _Tile] = {}
        self._first_row = 0  # of the tiles that are kept
        self._free: list[UInt8] = []  # buffers to be used again: a fresh one costs a page fault every 4 KB
        self._lock = threading.Lock()
        self._local = threading.local()

    def submit(self, rows: range, pixels: UInt8) -> Future[list[bool]]:
        new: list[_Tile] = []
        cuts = [self._plan((x, y), new) for x, y in self._grid.xy_px0[rows.start : rows.stop].tolist()]
        if new:
            done = self._pool.submit(self._decode, new)
            for tile in new:
                tile.done = done
        readable: Future[list[bool]] = Future()
        self._held.append((readable, cuts, pixels))
        if len(self._held) > self._threads:
            self._release()
        return readable

    def flush(self) -> None:
        while self._held:
            self._release()

    def _release(self) -> None:
        readable, cuts, pixels = self._held.popleft()
        self._pool.submit(self._cut, cuts, pixels).add_done_callback(functools.partial(_pass_on, readable))

    def _plan(self, xy_px0: tuple[int, int], new: list[_Tile]) -> _Cut:
        """The patch at ``xy_px0``; the tiles that nobody has asked for yet are added to ``new``."""
        level = self._level
        part = window(xy_px0, self._grid.side_px0, level.level, level.downsample)
        start = round(part.xy_px0[0] / level.downsample), round(part.xy_px0[1] / level.downsample)
        columns, rows = level.tiles_of(start, part.size)
        if len(rows) and rows[0] != self._first_row:
            self._first_row = rows[0]
            self._drop([n for n in self._live if n < rows[0] * level.columns])
        wanted = [row * level.columns + column for row in rows for column in columns]
        missing = [n for n in wanted if n not in self._live]
        excess = len(self._live) + len(missing) - self._most
        if excess > 0:  # the latest are needed last: when the next row of patches comes by
            others = [n for n in self._live if n not in wanted]
            self._drop(others[-excess:])
        for n in missing:
            self._live[n] = _Tile(n, self._buffer())
            new.append(self._live[n])
        tiles = {n: self._live[n] for n in wanted}
        with self._lock:
            for tile in tiles.values():
                tile.waiting += 1
        return _Cut(part, start, tiles)

    def _decode(self, tiles: Sequence[_Tile]) -> None:
        for tile in tiles:
            try:
                self._level.decode(tile.number, tile.pixels)
            except RegionError as error:
                tile.error = error

    def _cut(self, cuts: Sequence[_Cut], pixels: UInt8) -> list[bool]:
        return [self._is_cut(cut, out) for cut, out in zip(cuts, pixels, strict=True)]

    def _is_cut(self, cut: _Cut, pixels: UInt8) -> bool:
        """Fill ``pixels`` (s, s, 3); False where a tile cannot be decoded."""
        side = self._grid.side_px
        try:
            _check(cut.tiles.values())
            as_stored = cut.part.box == (0, 0, side, side)
            out = pixels if as_stored else self._scratch((cut.part.size[1], cut.part.size[0], 3))
            region = assemble(self._level, cut.start, {n: t.pixels for n, t in cut.tiles.items()}, out)
            if region is not pixels:
                pixels[:] = region if as_stored else area_mean(region, cut.part.box, (side, side))
        except RegionError:
            return False
        finally:
            self._cut_from(cut.tiles.values())
        return True

    def _drop(self, numbers: Sequence[int]) -> None:
        with self._lock:
            for n in numbers:
                tile = self._live.pop(n)
                tile.dropped = True
                if tile.waiting == 0:
                    self._free.append(tile.pixels)

    def _cut_from(self, tiles: Iterable[_Tile]) -> None:
        with self._lock:
            for tile in tiles:
                tile.waiting -= 1
                if tile.dropped and tile.waiting == 0:
                    self._free.append(tile.pixels)

    def _buffer(self) -> UInt8:
        try:
            return self._free.pop()
        except IndexError:
            return np.empty(self._shape, np.uint8)

    def _scratch(self, shape: tuple[int, int, int]) -> UInt8:
        """An array of this thread, until its next call."""
        count = int(np.prod(shape))
        held: UInt8 | None = getattr(self._local, "held", None)
        if held is None or len(held) < count:
            held = self._local.held = np.empty(count, np.uint8)
        return held[:count].reshape(shape)


def _pass_on(outer: Future[list[bool]], inner: Future[list[bool]]) -> None:
    """What came of ``inner``, to who waits for ``outer``."""
    if inner.cancelled():
        outer.cancel()
    elif (error := inner.exception()) is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())


def _check(tiles: Iterable[_Tile]) -> None:
    """Wait for all: none is being filled afterwards. Raises what the first that failed did."""
    for done in {tile.done for tile in tiles}:
        assert done is not None
        done.result()
    for tile in tiles:
        if tile.error is not None:
            raise tile.error
