"""The grid meets the target mpp exactly, and the covered fraction is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_pipeline.config import TileConfig
from wsi_pipeline.errors import EmptySlideError, SlideError
from wsi_pipeline.geometry import box_fractions
from wsi_pipeline.tile.grid import SlideFacts, patch_grid, require_patches
from wsi_pipeline.types import Box, TissueMask


def facts(mpp: float, size: tuple[int, int] = (2000, 1200)) -> SlideFacts:
    return SlideFacts("slide_1", size, (mpp, mpp), (0, 0, *size))


def full(size: tuple[int, int] = (2000, 1200), unreadable: tuple[Box, ...] = ()) -> TissueMask:
    return TissueMask(np.ones((math.ceil(size[1] / 20), math.ceil(size[0] / 20)), bool), (20.0, 20.0), unreadable)


@pytest.mark.parametrize(
    ("mpp", "side", "first_columns"),
    [
        (0.25, 448.0, [0, 448, 896, 1344]),
        (0.2431, 460.7157548, [0, 461, 921, 1382]),
        (0.499, 224.4488978, [0, 224, 449, 673]),
        (0.5, 224.0, [0, 224, 448, 672]),
    ],
)
def test_the_target_mpp_is_met_exactly(mpp: float, side: float, first_columns: list[int]) -> None:
    grid = patch_grid(facts(mpp), full(), TileConfig(mpp=0.5, side_px=224))
    assert grid.side_px0 == pytest.approx((side, side))
    assert grid.side_px0[0] / grid.side_px * mpp == pytest.approx(0.5)
    first_row = grid.xy_px0[grid.xy_px0[:, 1] == 0]
    assert first_row[:4, 0].tolist() == first_columns
    assert (grid.target_mpp, grid.mpp, grid.slide_size_px0) == (0.5, (mpp, mpp), (2000, 1200))


def test_the_resolution_of_x_and_y_may_differ() -> None:
    slide = SlideFacts("s", (2000, 1200), (0.25, 0.5), (0, 0, 2000, 1200))
    assert patch_grid(slide, full(), TileConfig(mpp=0.5, side_px=100)).side_px0 == (200.0, 100.0)


def test_patches_are_in_row_major_order() -> None:
    grid = patch_grid(facts(0.5, (300, 200)), full((300, 200)), TileConfig(side_px=100))
    assert grid.xy_px0.tolist() == [[0, 0], [100, 0], [200, 0], [0, 100], [100, 100], [200, 100]]
    assert grid.xy_px0.dtype == np.int64


def test_the_last_patch_may_extend_beyond_the_edge() -> None:
    """By less than half of its side."""
    config = TileConfig(side_px=100, min_tissue=0.5)
    assert patch_grid(facts(0.5, (160, 100)), full((160, 100)), config).xy_px0.tolist() == [[0, 0], [100, 0]]
    assert patch_grid(facts(0.5, (140, 100)), full((140, 100)), config).xy_px0.tolist() == [[0, 0]]


def test_overlap_is_a_fraction_of_the_side() -> None:
    grid = patch_grid(facts(0.5, (400, 100)), full((400, 100)), TileConfig(side_px=100, overlap=0.25))
    assert grid.stride_px0 == (75.0, 75.0)
    assert grid.xy_px0[grid.xy_px0[:, 1] == 0][:, 0].tolist() == [0, 75, 150, 225, 300]


def slow_fraction(mask: TissueMask, xy: tuple[int, int], side: tuple[float, float]) -> float:
    """The definition: the area of the footprint's overlap with each tissue pixel, one by one."""
    covered = 0.0
    for row, column in zip(*np.nonzero(mask.tissue), strict=True):
        left, top = column * mask.side_px0[0], row * mask.side_px0[1]
        width = min(left + mask.side_px0[0], xy[0] + side[0]) - max(left, xy[0])
        height = min(top + mask.side_px0[1], xy[1] + side[1]) - max(top, xy[1])
        covered += max(width, 0.0) * max(height, 0.0)
    return covered / (side[0] * side[1])


def test_the_covered_fraction_is_exact() -> None:
    rng = np.random.default_rng(0)
    mask = TissueMask(rng.random((14, 17)) < 0.5, (16.03, 15.2))
    side = (37.31, 22.9)
    xy = rng.integers(-30, 260, (80, 2)).astype(np.int64)
    got = box_fractions(mask.tissue, mask.side_px0, xy, side)
    expected = [slow_fraction(mask, (int(x), int(y)), side) for x, y in xy]
    np.testing.assert_allclose(got, expected, atol=1e-9)
    assert 0 < np.mean(expected) < 1


def test_min_tissue_is_a_lower_bound_of_the_covered_fraction() -> None:
    tissue = np.zeros((5, 20), bool)  # of 20 px0: patches of 100 px0 are 5 x 5 mask pixels
    tissue[:, 0:5] = True  # 25 of 25
    tissue[:, 5:7] = True  # 10 of 25
    tissue[0, 10] = True  # 1 of 25
    mask, slide = TissueMask(tissue, (20.0, 20.0)), facts(0.5, (400, 100))

    def kept(fraction: float) -> list[int]:
        config = TileConfig(side_px=100, min_tissue=fraction)
        columns: list[int] = patch_grid(slide, mask, config).xy_px0[:, 0].tolist()
        return columns

    assert kept(1.0) == [0]
    assert kept(0.4) == [0, 100]
    assert kept(0.41) == [0]
    assert kept(0.04) == [0, 100, 200]
    assert kept(0.0) == [0, 100, 200]


def test_patches_that_touch_an_unreadable_region_are_left_out() -> None:
    grid = patch_grid(facts(0.5, (300, 200)), full((300, 200), ((195, 90, 10, 5),)), TileConfig(side_px=100))
    assert grid.xy_px0.tolist() == [[0, 0], [0, 100], [100, 100], [200, 100]]


def test_a_slide_coarser_than_the_target_is_refused() -> None:
    with pytest.raises(SlideError) as caught:
        patch_grid(facts(1.0), full(), TileConfig(mpp=0.5))
    assert str(caught.value) == (
        "slide_1 has 1 µm/px, coarser than the 0.5 µm/px of tile.mpp: its patches would be enlarged; "
        "--set tile.mpp=1, or leave the slide out"
    )
    assert len(patch_grid(facts(0.504), full(), TileConfig(mpp=0.5)))  # within the tolerance


def test_the_error_of_an_empty_slide_states_what_was_found() -> None:
    config = TileConfig(side_px=100)
    nothing = TissueMask(np.zeros((10, 10), bool), (20.0, 20.0))
    grid = patch_grid(facts(0.5, (200, 200)), nothing, config)
    assert len(grid) == 0
    with pytest.raises(EmptySlideError, match=r"slide_1 has no tissue; look at tile/quality/slide_1\.jpg"):
        require_patches(grid, nothing, config)
    speck = TissueMask(np.eye(10, dtype=bool), (20.0, 20.0))
    with pytest.raises(EmptySlideError, match=r"tissue covers 10 % of the slide, but no patch is covered to 50%"):
        require_patches(patch_grid(facts(0.5, (200, 200)), speck, config), speck, config)
