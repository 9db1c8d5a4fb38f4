"""The overview is the exact mean of each footprint, read in blocks, and reports what could not be read."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image
from test_read_patch import slow_means
from test_read_slide import damage_tile, write_tiff

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.errors import RegionError, SlideError
from wsi_pipeline.read import open_slide, overview, read_overview
from wsi_pipeline.types import Box, UInt8


class DrawnSlide:
    """A slide of one level whose pixel (x, y) is (x mod 251, y mod 241, 7); ``bad`` px0 boxes cannot be read."""

    reader, vendor, mpp_source = "drawn", "drawn", "drawn"
    rejected_readers: tuple[str, ...] = ()
    downsamples: tuple[float, ...] = (1.0,)
    path = Path("drawn")

    def __init__(
        self, width: int, height: int, mpp: tuple[float, float] = (0.5, 0.5), bad: tuple[Box, ...] = ()
    ) -> None:
        self.sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self.mpp = mpp
        self.bounds_px0 = (0, 0, width, height)
        self.bad = bad
        self.largest = 0

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        (x, y), (width, height) = xy_px0, size
        self.largest = max(self.largest, width, height)
        for left, top, w, h in self.bad:
            if x < left + w and y < top + h and x + width > left and y + height > top:
                raise RegionError("bad")
        xs, ys = np.arange(x, x + width), np.arange(y, y + height)
        pixels = np.full((height, width, 3), 7, np.uint8)
        pixels[..., 0], pixels[..., 1] = (xs % 251)[None, :], (ys % 241)[:, None]
        pixels[(ys < 0) | (ys >= self.sizes[0][1])] = 255
        pixels[:, (xs < 0) | (xs >= self.sizes[0][0])] = 255
        return pixels

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def test_each_pixel_is_the_mean_of_its_footprint(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", ReadConfig(mpp=(0.5, 0.4))) as slide:
        got = read_overview(slide, mpp=3.0)
    assert got.side_px0 == (6.0, 7.5)
    assert got.rgb.shape == (6, 10, 3)
    assert np.abs(got.rgb - slow_means(pixels, (0, 0, 60, 45), (10, 6))).max() <= 0.502
    assert got.unreadable_px0 == ()


def test_the_last_pixels_extend_beyond_the_edge_into_white() -> None:
    got = read_overview(DrawnSlide(25, 10), mpp=5.0)  # 10 px0 a pixel
    assert got.rgb.shape == (1, 3, 3)
    assert got.rgb[0, :, 2].tolist() == [7, 7, 131]  # half of it 7, half 255


def test_the_largest_side_is_limited() -> None:
    got = read_overview(DrawnSlide(1000, 300), max_px=64)
    assert got.side_px0 == (15.625, 15.625)
    assert got.rgb.shape == (20, 64, 3)


def test_the_overview_is_never_finer_than_the_slide() -> None:
    assert read_overview(DrawnSlide(30, 20), max_px=500).rgb.shape == (20, 30, 3)
    assert read_overview(DrawnSlide(30, 20), mpp=0.1).rgb.shape == (20, 30, 3)


def test_blocks_bound_the_memory_and_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level only, so all of level 0 is read: at most a block at a time, and the same as in one piece."""
    whole = read_overview(DrawnSlide(1500, 1100, (0.499, 0.497)), mpp=8.0)
    monkeypatch.setattr(overview, "BLOCK_PX", 100)
    slide = DrawnSlide(1500, 1100, (0.499, 0.497))
    parts = read_overview(slide, mpp=8.0)
    assert slide.largest <= 100
    assert np.abs(parts.rgb.astype(int) - whole.rgb).max() <= 1
    assert (parts.rgb != whole.rgb).mean() < 0.001


def test_the_default_block_is_2048_pixels() -> None:
    slide = DrawnSlide(2100, 300)
    read_overview(slide, mpp=8.0)
    assert slide.largest <= 2048


def test_an_unreadable_region_is_reported_and_little_more_is_lost() -> None:
    slide = DrawnSlide(4000, 3000, bad=((1000, 700, 200, 100),))
    got = read_overview(slide, mpp=8.0)  # 16 px0 a pixel
    lost = np.zeros((3000, 4000), bool)
    for x, y, w, h in got.unreadable_px0:
        lost[y : y + h, x : x + w] = True
    assert lost[700:800, 1000:1200].all()
    assert lost.sum() <= 4 * 256**2  # a corner where four tiles meet
    clean = read_overview(DrawnSlide(4000, 3000), mpp=8.0).rgb
    seen = ~lost[8::16, 8::16][: len(clean)]
    assert np.abs(got.rgb[: len(seen)][seen].astype(int) - clean[: len(seen)][seen]).max() <= 1
    assert got.rgb[: len(seen)][~seen].min() == 255


def test_a_damaged_tile_of_a_file_is_reported(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.full((1024, 1024, 3), 90, np.uint8), "jpeg")
    with open_slide(damage_tile(path, 0), ReadConfig(mpp=0.5)) as slide:
        got = read_overview(slide, mpp=4.0)
    assert got.unreadable_px0 == ((0, 0, 256, 256),)
    assert got.rgb[:32, :32].min() == 255
    assert np.abs(got.rgb[32:].astype(int) - 90).max() <= 2


def test_a_slide_of_which_nothing_can_be_read_is_an_error_and_not_an_empty_slide() -> None:
    with pytest.raises(SlideError, match="nothing of level 0 can be decoded"):
        read_overview(DrawnSlide(700, 500, bad=((0, 0, 700, 500),)), mpp=8.0)


def test_an_overview_that_would_not_fit_in_memory_is_refused() -> None:
    with pytest.raises(SlideError, match=r"tile\.tissue_mpp"):
        read_overview(DrawnSlide(100_000, 100_000, (0.25, 0.25)), mpp=0.5)
