"""Reader for JPEG tiles in SVS and TIFF: libjpeg-turbo decodes each stored tile once; the metadata is OpenSlide's.

OpenSlide renders regions through a drawing library and decodes a tile again for every patch that touches it. If the
tiles are plain JPEG, the same pixels can be decoded from the file at several times the speed. The reader checks this
first: it opens a slide only if a few of the largest tiles (in bytes) of each level equal OpenSlide's to the last bit.

At a level whose downsample is not an integer OpenSlide shifts the stored pixels by a fraction; this reader does not.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import TiffFile, TiffPage

from ..errors import RegionError, SlideError
from ..types import UInt8
from .jpeg_tiles import TileFile, TileLevel, header_of, region
from .openslide_reader import OpenSlideFile
from .slide import Backend, readers

_VENDORS = ("aperio", "generic-tiff")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF
_JPEG, _RGB, _YCBCR = 7, 2, 6
_MAX_PAGES = 1000
_COMPARED = 3  # tiles per level
_NO_SHIFT = 1 / 512  # pixels: a fraction this small changes nothing in OpenSlide's arithmetic
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error, MemoryError)


class JpegTiff:
    """An open slide; see ``slide.Backend``. ``levels`` gives access to the stored tiles, for reading many patches."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(4) not in _MAGIC:
                raise SlideError("it is not a TIFF")
        reference = OpenSlideFile(path)
        try:
            self.vendor, self.sizes, self.downsamples = reference.vendor, reference.sizes, reference.downsamples
            self.bounds_px0, self.claims = reference.bounds_px0, reference.claims
            if self.vendor not in _VENDORS:
                raise SlideError(f"its vendor is {self.vendor}, not one of {', '.join(_VENDORS)}")
            self._file = TileFile(path)
            try:
                self.levels = tuple(self._levels())
                for level in self.levels:
                    _compare(level, reference)
            except SlideError:
                self._file.close()
                raise
        finally:
            reference.close()

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        tiles = self.levels[level]
        return region(tiles, [round(c / tiles.downsample) for c in xy_px0], size)

    def close(self) -> None:
        self._file.close()

    def _levels(self) -> Iterator[TileLevel]:
        """Raises ``SlideError`` if a level cannot be read this way."""
        pages = _pages(self._file.path)
        for level, (size, downsample) in enumerate(zip(self.sizes, self.downsamples, strict=True)):
            page = pages.get(size)
            if page is None:
                raise SlideError(f"level {level} has no directory of JPEG tiles")
            tiles = TileLevel(file=self._file, level=level, downsample=downsample, size=size, **page)
            count = len(tiles.counts)
            if len(tiles.offsets) != count or count != tiles.columns * tiles.rows:
                raise SlideError(f"level {level} has {count} tiles, not {tiles.columns} x {tiles.rows}")
            if self.vendor == "aperio" and len(self.sizes) > 1 and not tiles.counts.all():
                raise SlideError(f"level {level} lacks tiles; OpenSlide then redraws coarser ones from finer ones")
            yield tiles


@readers.register("jpeg_tiff")
def jpeg_tiff(path: Path) -> Backend:
    """SVS and generic TIFF with 8-bit RGB JPEG tiles: several times as fast as OpenSlide, and checked against it."""
    return JpegTiff(path)


def _pages(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(width, height) -> fields of ``TileLevel`` for each directory of JPEG tiles; the first of each size is used."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    log = logging.getLogger("tifffile")  # it would log damage that the raised error reports
    before, log.disabled = log.disabled, True
    try:
        with TiffFile(path) as tiff:
            if len(tiff.pages) > _MAX_PAGES:
                raise SlideError(f"it has {len(tiff.pages)} directories")
            for page in tiff.pages:
                if isinstance(page, TiffPage) and page.is_tiled:
                    found.setdefault((page.imagewidth, page.imagelength), _facts(page))
    except _DAMAGE as error:
        raise SlideError(f"its directories are damaged ({' '.join(str(error).split())})") from error
    finally:
        log.disabled = before
    return {size: facts for size, facts in found.items() if facts}


def _facts(page: TiffPage) -> dict[str, Any]:
    """Empty if the tiles are not plain 8-bit RGB JPEG."""
    plain = (
        page.compression == _JPEG
        and page.photometric in (_RGB, _YCBCR)
        and (page.bitspersample, page.samplesperpixel, page.planarconfig, page.imagedepth) == (8, 3, 1, 1)
        and page.tilewidth % 16 == page.tilelength % 16 == 0 < min(page.tilewidth, page.tilelength)
    )
    if not plain:
        return {}
    return {
        "tile": (page.tilewidth, page.tilelength),
        "offsets": np.asarray(page.dataoffsets, np.int64),  # an OverflowError is damage, too
        "counts": np.asarray(page.databytecounts, np.int64),
        "header": header_of(page.jpegtables, page.photometric == _RGB),
    }


def _compare(level: TileLevel, reference: OpenSlideFile) -> None:
    """Raises ``SlideError`` unless the largest tiles that can be decoded equal OpenSlide's, bit by bit."""
    compared = 0
    for tile in np.argsort(-level.counts, kind="stable")[: 8 * _COMPARED].tolist():
        row, column = divmod(tile, level.columns)
        corner = [_unshifted(c * side, level.downsample) for c, side in zip((column, row), level.tile, strict=True)]
        size = [min(side, e - c) for side, e, c in zip(level.tile, level.size, corner, strict=True)]
        if level.counts[tile] == 0 or min(size) < 1:
            continue
        xy_px0 = round(corner[0] * level.downsample), round(corner[1] * level.downsample)
        try:
            ours = region(level, corner, (size[0], size[1]))
            theirs = reference.read(xy_px0, level.level, (size[0], size[1]))
        except RegionError:
            continue
        if not np.array_equal(ours, theirs):
            most = int(np.abs(ours.astype(np.int16) - theirs).max())
            raise SlideError(f"its pixels at level {level.level} differ from OpenSlide's by up to {most}")
        compared += 1
        if compared == _COMPARED:
            return
    if compared == 0:
        raise SlideError(f"no tile of level {level.level} can be compared with OpenSlide's")


def _unshifted(start: int, downsample: float) -> int:
    """A pixel at or before ``start`` that coincides, to 1/512, with a level-0 pixel: there OpenSlide shifts nothing."""
    for pixel in range(start, max(start - 2048, -1), -1):
        if abs(round(pixel * downsample) / downsample - pixel) < _NO_SHIFT:
            return pixel
    return 0
