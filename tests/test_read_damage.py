"""Two hundred damaged slides: no crash, no hang, and never pixels that differ from OpenSlide's without an error."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
from damage import damage_file
from test_read_jpeg import write_slide

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.errors import RegionError, SlideError
from wsi_pipeline.read import open_slide, read_overview
from wsi_pipeline.read.slide import tile_levels

SLIDES = 200
SIDE = 65
MOST = 60  # regions a level


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_hundred_damaged_slides(tmp_path: Path) -> None:
    size = 260, 200
    intact = [
        write_slide(tmp_path / "rgb.svs", rgb=True, size=size),
        write_slide(tmp_path / "ycbcr.svs", size=size),
        write_slide(tmp_path / "generic.tif", size=size),
    ]
    outcomes: Counter[str] = Counter()
    for number in range(SLIDES):
        source = intact[number // 6 % len(intact)]
        path = tmp_path / f"{number}{source.suffix}"
        damage_file(source, path, number)
        outcomes[outcome_of(path)] += 1
        path.unlink()
    print(dict(outcomes))
    assert sum(outcomes.values()) == SLIDES
    assert outcomes["refused"] >= 40
    assert outcomes["in part, jpeg_tiff"] >= 20
    assert outcomes["in part, openslide"] >= 20


def outcome_of(path: Path) -> str:
    """How the reading of a slide ends; if the fast reader opens it, each region is compared with OpenSlide's."""
    try:
        slide = open_slide(path, ReadConfig(mpp=0.25))
    except SlideError:
        return "refused"
    with slide:
        if max(slide.sizes[0]) < 10_000:  # a damaged directory may state any size, and an overview reads it all
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
        return f"{'in part' if lost else 'complete'}, {slide.reader}"


def compare(path: Path, corner: tuple[int, int], size: tuple[int, int], pixels: np.ndarray) -> None:
    """Opens a new handle each time: after an error an OpenSlide handle reads nothing more."""
    with openslide.OpenSlide(path) as reference:
        theirs = reference.read_region(corner, 0, size).convert("RGBA")
    rgba = np.asarray(theirs).astype(int)
    clear = rgba[..., 3:] == 0
    np.testing.assert_array_equal(np.where(clear, 255, rgba[..., :3]), pixels)
