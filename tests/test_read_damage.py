"""Two hundred spoilt slides: no crash, no hang, and never other pixels than OpenSlide's in silence."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
from damage import spoil
from test_read_jpeg import write_slide

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.errors import RegionError, SlideError
from wsi_pipeline.read import open_slide, read_overview
from wsi_pipeline.read.slide import tile_levels

SLIDES = 200
SIDE = 65
MOST = 60  # regions a level


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_hundred_spoilt_slides(tmp_path: Path) -> None:
    size = 260, 200
    whole = [
        write_slide(tmp_path / "rgb.svs", rgb=True, size=size),
        write_slide(tmp_path / "ycbcr.svs", size=size),
        write_slide(tmp_path / "generic.tif", size=size),
    ]
    ends: Counter[str] = Counter()
    for number in range(SLIDES):
        source = whole[number // 6 % len(whole)]
        path = tmp_path / f"{number}{source.suffix}"
        spoil(source, path, number)
        ends[end_of(path)] += 1
        path.unlink()
    print(dict(ends))
    assert sum(ends.values()) == SLIDES
    assert ends["refused"] >= 40
    assert ends["in part, jpeg_tiff"] >= 20
    assert ends["in part, openslide"] >= 20


def end_of(path: Path) -> str:
    """What becomes of a slide; where the fast reader takes it, each region is compared."""
    try:
        slide = open_slide(path, ReadConfig(mpp=0.25))
    except SlideError:
        return "refused"
    with slide:
        if max(slide.sizes[0]) < 10_000:  # a spoilt directory may claim any size, and an overview reads it all
            with contextlib.suppress(SlideError):
                read_overview(slide, max_px=128)
        fast = bool(tile_levels(slide))
        lost = 0
        for level, (width, height) in enumerate(slide.sizes):
            corners = itertools.product(range(0, height, SIDE), range(0, width, SIDE))
            for y, x in itertools.islice(corners, MOST):
                corner = round(x * slide.downsamples[level]), round(y * slide.downsamples[level])
                size = min(SIDE, width - x), min(SIDE, height - y)
                try:
                    pixels = slide.read(corner, level, size)
                except RegionError:
                    lost += 1
                    continue
                if fast and level == 0:
                    compare(path, corner, size, pixels)
        return f"{'in part' if lost else 'whole'}, {slide.reader}"


def compare(path: Path, corner: tuple[int, int], size: tuple[int, int], pixels: np.ndarray) -> None:
    """A fresh handle each time: after an error OpenSlide gives nothing any more."""
    with openslide.OpenSlide(path) as said:
        theirs = said.read_region(corner, 0, size).convert("RGBA")
    rgba = np.asarray(theirs).astype(int)
    clear = rgba[..., 3:] == 0
    np.testing.assert_array_equal(np.where(clear, 255, rgba[..., :3]), pixels)
