"""Patches assembled from stored tiles, each of which is decoded once for all threads."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..errors import RegionError
from ..geometry import windows
from ..types import Int64, PatchGrid, UInt8
from .jpeg_tiles import TileLevel, assemble
from .memory import tile_memory
from .resample import area_mean


class _Tile:
    """A tile that is or will be decoded, its memory, and how many chunks still need it."""

    __slots__ = ("error", "kept", "last", "number", "pixels", "ready", "users")

    def __init__(self, number: int, last: int, pixels: UInt8) -> None:
        self.number = number
        self.last = last  # last row of the grid that needs it
        self.pixels = pixels
        self.ready = False
        self.error: RegionError | None = None
        self.users = 0
        self.kept = True


@dataclass(eq=False)
class _Chunk:
    """Consecutive patches that one thread reads."""

    rows: range  # of the grid
    pixels: UInt8  # (n, s, s, 3), to be filled
    readable: list[bool]
    left: int  # patches that are not assembled yet
    done: Future[list[bool]] = field(default_factory=Future)
    tiles: set[_Tile] = field(default_factory=set)  # that its patches touch


class _Patch(NamedTuple):
    """One patch of a chunk."""

    chunk: _Chunk
    place: int
    tiles: list[_Tile]  # that it touches
    new: list[_Tile]  # those of them that no earlier patch needed


class TileCache:
    """Decodes tiles as patches need them and keeps them, within ``tile_cache_mb``, until their last patch is assembled.

    A patch is assembled as soon as its tiles are decoded, while they are in the processor's cache. If another thread
    is still decoding one of them, the patch is deferred to whichever thread finishes next: no thread ever waits.

    Parameters
    ----------
    level : TileLevel
        The tiles.
    grid : PatchGrid
        All patches.
    pool : Executor
        Threads that decode and assemble.
    tile_cache_mb : int
        Megabytes of decoded tiles to keep.
    """

    def __init__(self, level: TileLevel, grid: PatchGrid, pool: Executor, tile_cache_mb: int) -> None:
        self._level, self._grid, self._pool = level, grid, pool
        self._windows = windows(grid.xy_px0, grid.side_px0, level.downsample)
        self._spans = level.spans(self._windows.start, self._windows.size)
        self._last = _last_rows(self._spans, level)
        self._shape = (level.tile[1], level.tile[0], 3)
        self._capacity = max(1, tile_cache_mb * 2**20 // math.prod(self._shape))
        self._kept: dict[int, _Tile] = {}
        self._free: list[UInt8] = []  # memory to be used again
        self._queue: deque[_Chunk] = deque()
        self._open: set[_Chunk] = set()
        self._deferred: list[_Patch] = []
        self._planning = threading.Lock()  # protects queue, kept and what is taken from free
        self._lock = threading.Lock()  # protects users, open and deferred

    def submit(self, rows: range, pixels: UInt8) -> Future[list[bool]]:
        """Begin to fill ``pixels`` (n, s, s, 3) with the patches ``rows``; returns which are readable."""
        chunk = _Chunk(rows, pixels, [False] * len(rows), len(rows))
        self._queue.append(chunk)
        with self._lock:
            self._open.add(chunk)
        self._pool.submit(self._read_next).add_done_callback(self._propagate_error)
        return chunk.done

    def _read_next(self) -> None:
        with self._planning:  # in the order of the grid, whichever thread comes first
            patches = self._plan(self._queue.popleft())
        deferred = []
        for patch in patches:
            for tile in patch.new:
                self._decode(tile)
            if _is_ready(patch):
                self._assemble(patch)
            else:
                deferred.append(patch)
        with self._lock:
            deferred += self._deferred
            ready = [patch for patch in deferred if _is_ready(patch)]
            self._deferred = [patch for patch in deferred if patch not in ready]
        for patch in ready:
            self._assemble(patch)

    def _plan(self, chunk: _Chunk) -> list[_Patch]:
        """The chunk's patches with their tiles; tiles that no later patch needs are no longer kept."""
        columns = self._level.columns
        touched = [
            [row * columns + column for row in range(top, bottom) for column in range(left, right)]
            for left, top, right, bottom in self._spans[chunk.rows.start : chunk.rows.stop].tolist()
        ]
        needed = set(itertools.chain.from_iterable(touched))
        excess = len(self._kept.keys() | needed) - self._capacity
        if excess > 0:  # the latest are needed last, for the next row of patches
            self._drop([tile for n, tile in self._kept.items() if n not in needed][-excess:])
        patches = []
        for place, numbers in enumerate(touched):
            new = [self._tile(n) for n in numbers if n not in self._kept]
            patches.append(_Patch(chunk, place, [self._kept[n] for n in numbers], new))
        chunk.tiles = {self._kept[n] for n in needed}
        with self._lock:
            for tile in chunk.tiles:
                tile.users += 1
        self._drop([tile for tile in chunk.tiles if tile.last < chunk.rows.stop])
        return patches

    def _tile(self, number: int) -> _Tile:
        memory = self._free.pop() if self._free else tile_memory(self._shape)
        tile = self._kept[number] = _Tile(number, int(self._last[number]), memory)
        return tile

    def _drop(self, tiles: Iterable[_Tile]) -> None:
        with self._lock:
            for tile in tiles:
                del self._kept[tile.number]
                tile.kept = False
                if tile.users == 0:
                    self._free.append(tile.pixels)

    def _decode(self, tile: _Tile) -> None:
        try:
            self._level.decode(tile.number, tile.pixels)
        except RegionError as error:
            tile.error = error
        tile.ready = True

    def _assemble(self, patch: _Patch) -> None:
        """Fill the patch's pixels, unless it touches a tile that cannot be decoded."""
        chunk = patch.chunk
        if not any(tile.error for tile in patch.tiles):
            chunk.readable[patch.place] = True
            tiles = {tile.number: tile.pixels for tile in patch.tiles}
            self._fill(chunk.pixels[patch.place], chunk.rows[patch.place], tiles)
        with self._lock:
            chunk.left -= 1
            if chunk.left or chunk not in self._open:
                return
            self._open.remove(chunk)
            for tile in chunk.tiles:
                tile.users -= 1
                if not tile.kept and tile.users == 0:
                    self._free.append(tile.pixels)
        chunk.done.set_result(chunk.readable)

    def _fill(self, pixels: UInt8, row: int, tiles: dict[int, UInt8]) -> None:
        start, (width, height), box = (part[row].tolist() for part in self._windows)
        side = self._grid.side_px
        if box == [0, 0, side, side]:
            assemble(self._level, start, tiles, pixels)
        else:
            region = assemble(self._level, start, tiles, self._level.file.scratch.array((height, width, 3)))
            pixels[:] = area_mean(region, tuple(box), (side, side))

    def _propagate_error(self, done: Future[None]) -> None:
        """Give an error that is not a tile's ``RegionError`` to all open chunks."""
        if done.cancelled() or (error := done.exception()) is None:
            return
        with self._lock:
            failed, self._open = self._open, set()
        for chunk in failed:
            chunk.done.set_exception(error)


def _is_ready(patch: _Patch) -> bool:
    return all(tile.ready for tile in patch.tiles)


def _last_rows(spans: Int64, level: TileLevel) -> Int64:
    """(tiles,) the last row of ``spans`` that contains each tile; -1: none."""
    last = np.full(level.columns * level.rows, -1, np.int64)
    left, top, right, bottom = spans.T
    for down in range((bottom - top).max(initial=0)):
        for across in range((right - left).max(initial=0)):
            row, column = top + down, left + across
            inside = (row < bottom) & (column < right)
            tiles = (row * level.columns + column)[inside]
            last[tiles] = np.maximum(last[tiles], np.flatnonzero(inside))  # ascending: for equal tiles the last wins
    return last
