"""A patch is the exact mean over its footprint, read from the right level."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tifffile import TiffWriter

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.read import open_slide, patch_level, read_patch
from wsi_pipeline.read.resample import area_mean
from wsi_pipeline.types import Float64, PatchGrid, UInt8

SetUp = Callable[[UInt8], Path]


def slow_means(pixels: UInt8, box: tuple[float, float, float, float], size: tuple[int, int]) -> Float64:
    """The definition, pixel by pixel: the integral of a step function over each footprint, over its area."""
    left, top, right, bottom = box
    step_x, step_y = (right - left) / size[0], (bottom - top) / size[1]
    means = np.zeros((size[1], size[0], 3))
    for row in range(size[1]):
        for column in range(size[0]):
            x0, x1 = left + column * step_x, left + (column + 1) * step_x
            y0, y1 = top + row * step_y, top + (row + 1) * step_y
            for y in range(math.floor(y0), math.ceil(y1)):
                for x in range(math.floor(x0), math.ceil(x1)):
                    covered = (min(x1, x + 1) - max(x0, x)) * (min(y1, y + 1) - max(y0, y))
                    if covered > 1e-9:
                        means[row, column] += covered * pixels[y, x]
    means /= step_x * step_y
    return means


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    left=st.floats(0, 3),
    top=st.floats(0, 3),
    width=st.floats(2.5, 20),
    height=st.floats(2.5, 20),
    columns=st.integers(1, 9),
    rows=st.integers(1, 9),
)
def test_area_mean_equals_the_definition(
    seed: int, left: float, top: float, width: float, height: float, columns: int, rows: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    box = (left, top, left + width, top + height)
    exact = slow_means(pixels, box, (columns, rows))
    assert np.abs(area_mean(pixels, box, (columns, rows)).astype(float) - exact).max() <= 0.502  # half a grey level


def test_whole_pixel_footprints_give_the_same_pixels_by_the_faster_path() -> None:
    pixels = np.random.default_rng(0).integers(200, 256, (56, 56, 3), dtype=np.uint8)
    for fx, fy in ((1, 1), (2, 2), (3, 3), (1, 3), (3, 1), (2, 1), (1, 2), (4, 8), (17, 17), (18, 15)):
        box = (1, 2, 1 + 3 * fx, 2 + 3 * fy)
        expected = np.floor(slow_means(pixels, box, (3, 3)) + 0.5)
        np.testing.assert_array_equal(area_mean(pixels, box, (3, 3)), expected)


@pytest.fixture
def as_png(tmp_path: Path) -> SetUp:
    def write(pixels: UInt8) -> Path:
        path = tmp_path / "slide.png"
        Image.fromarray(pixels).save(path)
        return path

    return write


def test_a_patch_at_the_slides_own_mpp_is_its_pixels(as_png: SetUp) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    with open_slide(as_png(pixels), ReadConfig(mpp=0.5)) as slide:
        patch = read_patch(slide, (7, 11), (16.0, 16.0), 16, 0)
    np.testing.assert_array_equal(patch, pixels[11:27, 7:23])


def test_a_fractional_footprint_is_its_mean(as_png: SetUp) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    side = 16 * 0.5 / 0.2431, 16 * 0.5 / 0.2440  # 32.908, 32.787
    with open_slide(as_png(pixels), ReadConfig(mpp=(0.2431, 0.2440))) as slide:
        patch = read_patch(slide, (5, 9), side, 16, 0)
    exact = slow_means(pixels, (5, 9, 5 + side[0], 9 + side[1]), (16, 16))
    assert patch.shape == (16, 16, 3)
    assert np.abs(patch - exact).max() <= 0.502


def test_pixels_beyond_the_slide_are_white(as_png: SetUp) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    with open_slide(as_png(pixels), ReadConfig(mpp=0.5)) as slide:
        patch = read_patch(slide, (15, 0), (10.0, 10.0), 10, 0)
        assert read_patch(slide, (-30, 0), (10.0, 10.0), 10, 0).min() == 255
    assert patch[:, :5].max() == 0
    assert patch[:, 5:].min() == 255


def pyramid(path: Path, greys: tuple[int, ...]) -> Path:
    """Levels of 1024, 512, 256 … px, each of one grey, so that a pixel identifies its level."""
    with TiffWriter(path) as tiff:
        for i, grey in enumerate(greys):
            side = 1024 >> i
            tiff.write(
                np.full((side, side, 3), grey, np.uint8),
                tile=(128, 128),
                photometric="rgb",
                compression="deflate",
                subfiletype=0 if i == 0 else 1,
                resolution=(4e4 / 2**i,) * 2,  # 0.25 µm/px
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def grid_at(target_mpp: float, mpp: float) -> PatchGrid:
    side = 32 * target_mpp / mpp
    return PatchGrid(
        slide_id="s",
        xy_px0=np.zeros((1, 2), np.int64),
        side_px=32,
        side_px0=(side, side),
        stride_px0=(side, side),
        target_mpp=target_mpp,
        mpp=(mpp, mpp),
        slide_size_px0=(1024, 1024),
        bounds_px0=(0, 0, 1024, 1024),
    )


@pytest.mark.parametrize(
    ("target_mpp", "level"),
    [(0.25, 0), (0.3, 0), (0.494, 0), (0.496, 1), (0.5, 1), (0.989, 1), (0.991, 2), (1.0, 2), (8.0, 2)],
)
def test_a_patch_comes_from_the_nearest_finer_level(tmp_path: Path, target_mpp: float, level: int) -> None:
    greys = (10, 20, 30)
    with open_slide(pyramid(tmp_path / "slide.tif", greys), ReadConfig()) as slide:
        grid = grid_at(target_mpp, slide.mpp[0])
        assert slide.mpp == pytest.approx((0.25, 0.25))
        assert patch_level(slide, grid) == level
        patch = read_patch(slide, (0, 0), grid.side_px0, 32, level)
    assert patch.shape == (32, 32, 3)
    assert patch.min() == patch.max() == greys[level]


def test_a_patch_is_the_same_from_two_levels(tmp_path: Path) -> None:
    """Level 1 is the exact half of level 0, so a patch is the same from either."""
    fine = np.random.default_rng(3).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    coarse = area_mean(fine, (0, 0, 512, 512), (256, 256))
    path = tmp_path / "slide.tif"
    with TiffWriter(path) as tiff:
        for i, level in enumerate((fine, coarse)):
            tiff.write(level, tile=(128, 128), photometric="rgb", compression="deflate", subfiletype=i, metadata=None)
    with open_slide(path, ReadConfig(mpp=0.25)) as slide:
        one, two = (read_patch(slide, (60, 132), (128.0, 128.0), 32, level) for level in (0, 1))
    assert np.abs(one.astype(int) - two).max() <= 1  # rounded twice
