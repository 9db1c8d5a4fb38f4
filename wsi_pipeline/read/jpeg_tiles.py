"""The JPEG tiles of one level, decoded by libjpeg-turbo directly from the file.

A TIFF stores the tables that its tiles share (quantisation and Huffman) once, and their colour space in a tag. A JPEG
decoder needs both in front of each tile: start of image, Adobe's APP14 marker with the colour transform, the tables.
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

SCALES = (1, 2, 4, 8)  # factors by which the inverse DCT can shrink a tile
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"


class TileFile:
    """A file that several threads read concurrently, each into its own buffer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scratch = Scratch()
        self._file: BinaryIO = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()
        self._local = threading.local()

    def read_after_header(self, header: bytes, offset: int, count: int) -> memoryview | None:
        """Read a tile's JPEG stream with a header in place of its start-of-image marker.

        Parameters
        ----------
        header : bytes
            See ``header_of``.
        offset, count : int
            Position and length of the tile in the file, bytes.

        Returns
        -------
        memoryview or None
            The stream, valid until this thread's next call; None if no image begins at ``offset``.
        """
        length = len(header) - len(_SOI) + count
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = bytearray(2 * length)
        stream = memoryview(buffer)[:length]
        data = stream[len(header) - len(_SOI) :]
        if self._read_at(offset, data) < count or data[: len(_SOI)] != _SOI:
            return None
        stream[: len(header)] = header
        return stream

    def _read_at(self, offset: int, data: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [data], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(data) or 0  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True, eq=False)
class TileLevel:
    """The tiles of one level, numbered row by row. Frame: pixels of the level after any shrinking.

    Attributes
    ----------
    file : TileFile
        The slide file.
    level : int
        Index of the stored level.
    downsample : float
        Level-0 pixels per pixel.
    size, tile : (int, int)
        (width, height) of the level and of a tile.
    offsets, counts : ndarray of int64, (tiles,)
        Position and length of each tile in the file, bytes; length 0: the scanner stored nothing there.
    header : bytes
        See ``header_of``.
    full : TileLevel, optional
        Each pixel is the mean of a square of pixels of this level; None: the level is decoded as it is.
    """

    file: TileFile
    level: int
    downsample: float
    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: Int64 = field(repr=False)  # (tiles,)
    counts: Int64 = field(repr=False)  # (tiles,)
    header: bytes = field(repr=False)
    full: TileLevel | None = None

    @property
    def columns(self) -> int:
        """Tiles across."""
        return -(-self.size[0] // self.tile[0])

    @property
    def rows(self) -> int:
        """Tiles down."""
        return -(-self.size[1] // self.tile[1])

    def scaled(self, by: int) -> TileLevel:
        """The same tiles, shrunk by the inverse DCT while they are decoded; ``by`` is one of ``SCALES``."""
        return replace(
            self,
            downsample=self.downsample * by,
            size=(-(-self.size[0] // by), -(-self.size[1] // by)),
            tile=(self.tile[0] // by, self.tile[1] // by),
        )

    def averaged(self, by: int) -> TileLevel:
        """The same tiles with each square of ``by`` x ``by`` pixels replaced by its mean, as ``resample.area_mean``.

        ``by`` divides the sides of a tile. Squares on the level's edge include white pixels outside the level.
        """
        return self if by == 1 else replace(self.scaled(by), full=self)

    def spans(self, start: Int64, size: Int64) -> Int64:
        """Tiles that each region touches.

        Parameters
        ----------
        start, size : ndarray of int64, (N, 2)
            First pixel (x, y) and (width, height) of each region, pixels of the level.

        Returns
        -------
        ndarray of int64, (N, 4)
            First column, first row, column after the last, row after the last; regions outside the level touch none.
        """
        low = np.maximum(start, 0) // self.tile
        high = -(-np.minimum(start + size, self.size) // self.tile)
        return np.hstack([low, high])

    def decode(self, tile: int, out: UInt8) -> None:
        """Decode a tile; one that is not stored is white. Thread-safe.

        Parameters
        ----------
        tile : int
            Number of the tile, row by row.
        out : ndarray of uint8, (tile height, tile width, 3)
            Filled with RGB.

        Raises
        ------
        RegionError
            The tile's bytes are not a complete image of its size.
        SlideError
            The file can no longer be read.
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
            data = self.file.read_after_header(self.header, offset, count)
        except OSError as error:
            raise SlideError(f"{self.file.path} can no longer be read ({error}); is its disk still there?") from error
        if data is None:
            raise self._damaged(tile, "no image begins there")
        try:
            decoded = simplejpeg.decode_jpeg(
                data, "RGB", fastdct=False, fastupsample=False, min_height=len(out), min_width=out.shape[1], buffer=out
            )
        except ValueError as error:
            raise self._damaged(tile, " ".join(str(error).split())) from error
        if decoded.shape != out.shape:
            raise self._damaged(tile, f"it has {decoded.shape[1]} x {decoded.shape[0]} pixels")

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
            f"({reason}); copy the slide again if the original is intact"
        )


def assemble(level: TileLevel, start: Sequence[int], tiles: dict[int, UInt8], out: UInt8) -> UInt8:
    """Copy a region from decoded tiles, white outside the level.

    Parameters
    ----------
    level : TileLevel
        The level.
    start : (int, int)
        First pixel (x, y) of the region, pixels of the level.
    tiles : dict of int to ndarray of uint8, (tile height, tile width, 3)
        Decoded tiles by number; all that the region touches.
    out : ndarray of uint8, (h, w, 3)
        Filled with the region.

    Returns
    -------
    ndarray of uint8, (h, w, 3)
        ``out``.
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
    """Intervals from ``start`` to ``stop``, divided at the tile edges."""
    while start < stop:
        far = min((start // side + 1) * side, stop)
        yield start, far
        start = far


def _parts(at: int, far: int, origin: int, side: int) -> tuple[slice, slice]:
    """The interval from ``at`` to ``far`` relative to ``origin``, and relative to the tile that contains ``at``."""
    begin = at // side * side
    return slice(at - origin, far - origin), slice(at - begin, far - begin)


def region(level: TileLevel, start: Sequence[int], size: tuple[int, int]) -> UInt8:
    """Decode a region, white outside the level.

    Parameters
    ----------
    level : TileLevel
        The level.
    start, size : (int, int)
        First pixel (x, y) and (width, height), pixels of the level.

    Returns
    -------
    ndarray of uint8, (height, width, 3)
        RGB.

    Raises
    ------
    RegionError
        One of its tiles cannot be decoded.
    """
    left, top, right, bottom = level.spans(np.array([start]), np.array([size]))[0].tolist()
    tiles: dict[int, UInt8] = {}
    for tile in (row * level.columns + column for row in range(top, bottom) for column in range(left, right)):
        tiles[tile] = tile_memory((level.tile[1], level.tile[0], 3))
        level.decode(tile, tiles[tile])
    return assemble(level, start, tiles, np.empty((size[1], size[0], 3), np.uint8))


def header_of(tables: bytes | None, rgb: bool) -> bytes:
    """JPEG header for each tile: start of image, Adobe's marker (transform 0: RGB, 1: YCbCr), the shared tables."""
    adobe = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, 0 if rgb else 1)
    if tables is None:
        return _SOI + adobe
    shared = tables.removeprefix(_SOI)
    return _SOI + adobe + shared.removesuffix(_EOI)
