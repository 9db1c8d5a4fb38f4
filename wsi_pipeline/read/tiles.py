"""The JPEG tiles of one level, each decoded by libjpeg-turbo straight from the file.

A TIFF keeps what its tiles share (quantisation and Huffman tables) once, and says how they are coloured in a tag. A
decoder wants both in front of each tile: start of image, Adobe's APP14 marker with the colour transform, the tables.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg

from ..errors import RegionError, SlideError
from ..types import Int64, UInt8

SCALES = (1, 2, 4, 8)  # what the inverse DCT can shrink a tile by
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"


class TileFile:
    """A file that threads read at once, each into a buffer of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()
        self._local = threading.local()

    def read_behind(self, head: bytes, offset: int, count: int) -> memoryview | None:
        """``head`` and the ``count`` bytes at ``offset``, without the two that begin an image; None without those.

        The view is this thread's until its next call.
        """
        length = len(head) - len(_SOI) + count
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = bytearray(2 * length)
        whole = memoryview(buffer)[:length]
        data = whole[len(head) - len(_SOI) :]
        if self._read_at(offset, data) < count or data[: len(_SOI)] != _SOI:
            return None
        whole[: len(head)] = head
        return whole

    def _read_at(self, offset: int, data: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [data], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(data) or 0  # type: ignore[attr-defined]

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


@dataclass(frozen=True, eq=False)
class TileLevel:
    """One level as its tiles, numbered row by row. Frame: pixels of the level, divided by ``scale``."""

    file: TileFile
    level: int
    downsample: float  # level-0 pixels per pixel, ``scale`` included
    size: tuple[int, int]  # (width, height)
    tile: tuple[int, int]  # (width, height) of a tile
    offsets: Int64 = field(repr=False)  # (tiles,) bytes
    counts: Int64 = field(repr=False)  # (tiles,) bytes; 0: the scanner stored nothing there
    head: bytes = field(repr=False)
    scale: int = 1

    @property
    def columns(self) -> int:
        """Tiles across."""
        return -(-self.size[0] // self.tile[0])

    @property
    def rows(self) -> int:
        """Tiles down."""
        return -(-self.size[1] // self.tile[1])

    def scaled(self, scale: int) -> TileLevel:
        """The same tiles, shrunk while they are decoded: ``scale`` is one of ``SCALES``."""
        return replace(
            self,
            downsample=self.downsample * scale,
            size=(-(-self.size[0] // scale), -(-self.size[1] // scale)),
            tile=(self.tile[0] // scale, self.tile[1] // scale),
            scale=scale,
        )

    def tiles_of(self, start: Sequence[int], size: Sequence[int]) -> tuple[range, range]:
        """Columns and rows of the tiles that a region touches, where it lies inside the level."""
        columns, rows = (
            range(max(s, 0) // side, -(-min(s + n, extent) // side))
            for s, n, side, extent in zip(start, size, self.tile, self.size, strict=True)
        )
        return columns, rows

    def decode(self, tile: int, out: UInt8) -> None:
        """Fill ``out`` (tile height, tile width, 3); a tile that is not stored is white.

        Thread-safe. Raises ``RegionError`` where the tile's bytes are no whole picture of its size, and ``SlideError``
        where the file cannot be read at all.
        """
        offset, count = int(self.offsets[tile]), int(self.counts[tile])
        if count == 0:
            out.fill(255)
            return
        if offset + count > self.file.size:
            raise self._damaged(tile, "the file ends before it")
        try:
            data = self.file.read_behind(self.head, offset, count)
        except OSError as error:
            raise SlideError(f"{self.file.path} can no longer be read ({error}); is its disk still there?") from error
        if data is None:
            raise self._damaged(tile, "no picture begins there")
        try:
            decoded = simplejpeg.decode_jpeg(
                data, "RGB", fastdct=False, fastupsample=False, min_height=len(out), min_width=out.shape[1], buffer=out
            )
        except ValueError as error:
            raise self._damaged(tile, " ".join(str(error).split())) from error
        if decoded.shape != out.shape:
            raise self._damaged(tile, f"it holds {decoded.shape[1]} x {decoded.shape[0]} pixels")

    def _damaged(self, tile: int, reason: str) -> RegionError:
        row, column = divmod(tile, self.columns)
        return RegionError(
            f"{self.file.path.name}: level {self.level}, the tile in column {column}, row {row} cannot be decoded "
            f"({reason}); copy the slide again if it should be whole"
        )


def assemble(level: TileLevel, start: Sequence[int], tiles: dict[int, UInt8], out: UInt8) -> UInt8:
    """The region of ``out``'s shape (h, w, 3) whose first pixel is ``start``, cut from decoded ``tiles`` by number.

    White outside the level. Returns ``out``, or a part of a tile that holds it all.
    """
    height, width = out.shape[:2]
    columns, rows = level.tiles_of(start, (width, height))
    (x0, y0), (side_x, side_y) = start, level.tile
    right, bottom = min(x0 + width, level.size[0]), min(y0 + height, level.size[1])
    if (right - x0, bottom - y0) != (width, height) or min(x0, y0) < 0:
        out.fill(255)
    elif len(columns) == len(rows) == 1:
        x, y = x0 - columns[0] * side_x, y0 - rows[0] * side_y
        return tiles[rows[0] * level.columns + columns[0]][y : y + height, x : x + width]
    across = [(column, max(x0, column * side_x), min(right, (column + 1) * side_x)) for column in columns]
    for row in rows:
        top, low = max(y0, row * side_y), min(bottom, (row + 1) * side_y)
        strip = out[top - y0 : low - y0]
        first = row * level.columns
        inside = slice(top - row * side_y, low - row * side_y)
        for column, left, far in across:
            begin = column * side_x
            strip[:, left - x0 : far - x0] = tiles[first + column][inside, left - begin : far - begin]
    return out


def region(level: TileLevel, start: Sequence[int], size: tuple[int, int]) -> UInt8:
    """Pixels (height, width, 3) of ``size`` = (width, height) from ``start``, white outside the level.

    Raises ``RegionError`` where one of its tiles cannot be decoded.
    """
    columns, rows = level.tiles_of(start, size)
    tiles: dict[int, UInt8] = {}
    for tile in (row * level.columns + column for row in rows for column in columns):
        tiles[tile] = np.empty((level.tile[1], level.tile[0], 3), np.uint8)
        level.decode(tile, tiles[tile])
    return assemble(level, start, tiles, np.empty((size[1], size[0], 3), np.uint8))


def head_of(tables: bytes | None, rgb: bool) -> bytes:
    """What goes in front of each tile: Adobe's marker (transform 0: RGB, 1: YCbCr), then the shared tables."""
    adobe = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, 0 if rgb else 1)
    if tables is None:
        return _SOI + adobe
    shared = tables.removeprefix(_SOI)
    return _SOI + adobe + shared.removesuffix(_EOI)
