"""Large slides for the benchmarks: mosaics of real tissue if ../shared/data is available, else of synthetic tissue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from tifffile import TiffWriter

from wsi_pipeline.artifacts import atomic_path
from wsi_pipeline.config import ReadConfig
from wsi_pipeline.demo import draw_slide
from wsi_pipeline.read import open_slide
from wsi_pipeline.types import UInt8

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "slides" / "cmu-1-small-region.svs"
_APERIO = "Aperio Image Library v12.0.0 \n{0}x{0} [0,0 {0}x{0}] ({1}x{1}) JPEG/RGB Q={2}|AppMag = 40|MPP = 0.25"


@dataclass(frozen=True)
class Kind:
    """Storage format of a slide."""

    text: str
    tile: int
    quality: int
    subsampling: str
    svs: bool


KINDS = {
    "A": Kind("SVS, RGB 4:4:4, Q70, 240-px tiles", 240, 70, "444", True),
    "B": Kind("SVS, YCbCr 4:2:0, Q80, 256-px tiles", 256, 80, "420", True),
    "C": Kind("TIFF, YCbCr 4:2:0, Q75, 512-px tiles", 512, 75, "420", False),
}


def make_slide(folder: Path, kind: str, side_px: int) -> Path:
    """``folder``/<kind>-<side>.svs or .tif with downsamples 1, 4 and 16, at 0.25 µm/px; created if missing."""
    how = KINDS[kind]
    path = folder / f"{kind}-{side_px}.{'svs' if how.svs else 'tif'}"
    if path.exists():
        return path
    tissue = source(folder)
    coarse = np.empty((side_px // 4, side_px // 4, 3), np.uint8)
    with atomic_path(path) as beside, TiffWriter(beside, bigtiff=True) as tiff:
        for level in range(3):
            size = side_px // 4**level
            cells = mosaic(tissue, how.tile, size, coarse) if level == 0 else shrunk(coarse, how.tile, 4 ** (level - 1))
            tiff.write(
                (encoded(cell, how) for cell in cells),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(how.tile, how.tile),
                photometric="rgb" if how.subsampling == "444" else "ycbcr",
                subsampling=None if how.subsampling == "444" else (2, 2),
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"} if how.subsampling == "444" else None,
                subfiletype=0 if how.svs or level == 0 else 1,
                description=_APERIO.format(size, how.tile, how.quality) if how.svs else None,
                resolution=None if how.svs else (40_000 / 4**level,) * 2,
                resolutionunit=None if how.svs else "CENTIMETER",
                metadata=None,
                software=False,
            )
    return path


def source(folder: Path) -> UInt8:
    """A few million pixels of tissue."""
    path = REAL
    if not path.exists():
        path = folder / "drawn.tif"
        draw_slide(path, side_px=3000, seed=0, tumour=True)
    with open_slide(path, ReadConfig()) as slide:
        return slide.read((0, 0), 0, slide.sizes[0])


def mosaic(tissue: UInt8, tile: int, side: int, coarse: UInt8) -> Iterator[UInt8]:
    """Tiles in row-major order, each a random part of ``tissue``; also fills ``coarse`` with them, 4 x smaller."""
    rng = np.random.default_rng(0)
    limits = np.array(tissue.shape[:2]) - tile
    for top in range(0, side, tile):
        for left in range(0, side, tile):
            y, x = rng.integers(0, limits)
            cell = tissue[y : y + tile, x : x + tile]
            small = np.asarray(Image.fromarray(cell).reduce(4))
            place = coarse[top // 4 : (top + tile) // 4, left // 4 : (left + tile) // 4]
            place[:] = small[: place.shape[0], : place.shape[1]]
            yield cell


def shrunk(coarse: UInt8, tile: int, by: int) -> Iterator[UInt8]:
    """A coarser level in tiles, padded at the edges."""
    pixels = np.asarray(Image.fromarray(coarse).reduce(by)) if by > 1 else coarse
    for top in range(0, len(pixels), tile):
        for left in range(0, pixels.shape[1], tile):
            cell = pixels[top : top + tile, left : left + tile]
            yield np.pad(cell, [(0, tile - cell.shape[0]), (0, tile - cell.shape[1]), (0, 0)], mode="edge")


def encoded(cell: UInt8, how: Kind) -> bytes:
    """A tile as JPEG."""
    colour = "RGB" if how.subsampling == "444" else "YCBCR"
    return bytes(
        imagecodecs.jpeg8_encode(
            cell, level=how.quality, colorspace="RGB", outcolorspace=colour, subsampling=how.subsampling
        )
    )
