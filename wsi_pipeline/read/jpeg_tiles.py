"""The JPEG tiles of one level, each decoded by libjpeg-turbo straight from the file.

A TIFF keeps what its tiles share (quantisation and Huffman tables) once, and says how they are coloured in a tag. A
decoder wants both in front of each tile: start of image, Adobe's APP14 marker with the colour transform, the tables.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg

from ..errors import RegionError, SlideError
from ..types import Int64, UInt8
from .memory import Scratch, tile_memory
from .resample import block_means

SCALES = (1, 2, 4, 8)  # what the inverse DCT can shrink a tile by
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"


class TileFile:
    """A file that threads read at once, each into a buffer of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scratch = Scratch()
        self._file: BinaryIO = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()
        self._local = threading.local()

    def read_after_header(self, head: bytes, offset: int, count: int) -> memoryview | None:
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
    """One level as its tiles, numbered row by row. Frame: pixels of the level as they are given, shrunk or not."""

    file: TileFile
    level: int
    downsample: float  # level-0 pixels per pixel
    size: tuple[int, int]  # (width, height)
    tile: tuple[int, int]  # (width, height) of a tile
    offsets: Int64 = field(repr=False)  # (tiles,) bytes
    counts: Int64 = field(repr=False)  # (tiles,) bytes; 0: the scanner stored nothing there
    head: bytes = field(repr=False)
    full: TileLevel | None = None  # each pixel is the mean of a square of this one's; None: it is what is decoded

    @property
    def columns(self) -> int:
        """Tiles across."""
        return -(-self.size[0] // self.tile[0])

    @property
    def rows(self) -> int:
        """Tiles down."""
        return -(-self.size[1] // self.tile[1])

    def scaled(self, by: int) -> TileLevel:
        """The same tiles, shrunk while they are decoded, by the inverse DCT; ``by`` is one of ``SCALES``."""
        return replace(
            self,
            downsample=self.downsample * by,
            size=(-(-self.size[0] // by), -(-self.size[1] // by)),
            tile=(self.tile[0] // by, self.tile[1] // by),
        )

    def averaged(self, by: int) -> TileLevel:
        """The same tiles, each square of ``by`` x ``by`` pixels as its mean: ``resample.area_mean``'s.

        ``by`` divides the sides of a tile. White outside the level counts in the squares that its edge crosses.
        """
        return self if by == 1 else replace(self.scaled(by), full=self)

    def spans(self, start: Int64, size: Int64) -> Int64:
        """(N, 4): the first column and row, and those after the last, of the tiles that each region touches.

        ``start`` and ``size`` are (N, 2); what lies outside the level touches none.
        """
        low = np.maximum(start, 0) // self.tile
        high = -(-np.minimum(start + size, self.size) // self.tile)
        return np.hstack([low, high])

    def decode(self, tile: int, out: UInt8) -> None:
        """Fill ``out`` (tile height, tile width, 3); a tile that is not stored is white.

        Thread-safe. Raises ``RegionError`` where the tile's bytes are no whole picture of its size, and ``SlideError``
        where the file cannot be read at all.
        """
        if self.full is not None:
            self._average(self.full, tile, out)
            return
        offset, count = int(self.offsets[tile]), int(self.counts[tile])
        if count == 0:
            out.fill(255)
            return
        if offset + count > self.file.size:
            raise self._damaged(tile, "the file ends before it")
        try:
            data = self.file.read_after_header(self.head, offset, count)
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

    def _average(self, full: TileLevel, tile: int, out: UInt8) -> None:
        row, column = divmod(tile, self.columns)
        pixels = self.file.scratch.array((full.tile[1], full.tile[0], 3))
        full.decode(tile, pixels)
        pixels[max(full.size[1] - row * full.tile[1], 0) :] = 255
        pixels[:, max(full.size[0] - column * full.tile[0], 0) :] = 255
        out[:] = block_means(pixels, full.tile[0] // self.tile[0], full.tile[1] // self.tile[1])

    def _damaged(self, tile: int, reason: str) -> RegionError:
        row, column = divmod(tile, self.columns)
        return RegionError(
            f"{self.file.path.name}: level {self.level}, the tile in column {column}, row {row} cannot be decoded "
            f"({reason}); copy the slide again if it should be whole"
        )


def assemble(level: TileLevel, start: Sequence[int], tiles: dict[int, UInt8], out: UInt8) -> UInt8:
    """Fill ``out`` (h, w, 3), whose first pixel is ``start``, from decoded ``tiles``, by number.

    White outside the level. Gives ``out``.
    """
    height, width = out.shape[:2]
    (x0, y0), (side_x, side_y), columns = start, level.tile, level.columns
    right, bottom = min(x0 + width, level.size[0]), min(y0 + height, level.size[1])
    left, top = max(x0, 0), max(y0, 0)
    if (right - left, bottom - top) != (width, height):
        out.fill(255)
    across = [(at // side_x, *_parts(at, far, x0, side_x)) for at, far in _steps(left, right, side_x)]
    for at, far in _steps(top, bottom, side_y):
        first = at // side_y * columns
        to_y, of_y = _parts(at, far, y0, side_y)
        strip = out[to_y]
        for column, to_x, of_x in across:
            strip[:, to_x] = tiles[first + column][of_y, of_x]
    return out


def _steps(start: int, stop: int, side: int) -> Iterator[tuple[int, int]]:
    """From ``start`` to ``stop``, ended by each edge of a tile."""
    while start < stop:
        far = min((start // side + 1) * side, stop)
        yield start, far
        start = far


def _parts(at: int, far: int, origin: int, side: int) -> tuple[slice, slice]:
    """Of what begins at ``origin``, and of the tile that ``at`` is in."""
    begin = at // side * side
    return slice(at - origin, far - origin), slice(at - begin, far - begin)


def region(level: TileLevel, start: Sequence[int], size: tuple[int, int]) -> UInt8:
    """Pixels (height, width, 3) of ``size`` = (width, height) from ``start``, white outside the level.

    Raises ``RegionError`` where one of its tiles cannot be decoded.
    """
    left, top, right, bottom = level.spans(np.array([start]), np.array([size]))[0].tolist()
    tiles: dict[int, UInt8] = {}
    for tile in (row * level.columns + column for row in range(top, bottom) for column in range(left, right)):
        tiles[tile] = tile_memory((level.tile[1], level.tile[0], 3))
        level.decode(tile, tiles[tile])
    return assemble(level, start, tiles, np.empty((size[1], size[0], 3), np.uint8))


def head_of(tables: bytes | None, rgb: bool) -> bytes:
    """What goes in front of each tile: Adobe's marker (transform 0: RGB, 1: YCbCr), then the shared tables."""
    adobe = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, 0 if rgb else 1)
    if tables is None:
        return _SOI + adobe
    shared = tables.removeprefix(_SOI)
    return _SOI + adobe + shared.removesuffix(_EOI)
