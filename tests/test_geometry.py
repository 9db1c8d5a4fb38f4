"""All coordinates are scaled in one module, and correctly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.geometry import best_level, box_fractions, grid_corners_px0, side_px0, um_to_px0, window


def test_a_length_in_um_has_its_own_pixel_count_on_each_axis() -> None:
    assert um_to_px0(100.0, (0.5, 0.25)) == (200.0, 400.0)


@pytest.mark.parametrize(("mpp", "expected"), [(0.25, 448.0), (0.5, 224.0), (0.499, 112.0 / 0.499)])
def test_the_footprint_meets_the_target_mpp_exactly(mpp: float, expected: float) -> None:
    assert side_px0(224, 0.5, (mpp, mpp)) == pytest.approx((expected, expected))


@pytest.mark.parametrize(
    ("target", "level"), [(0.5, 0), (1.0, 0), (1.99, 0), (2.0, 0), (3.97, 1), (4.0, 1), (15.9, 2), (16.0, 2), (99.0, 2)]
)
def test_the_level_is_the_coarsest_that_is_fine_enough(target: float, level: int) -> None:
    assert best_level((1.0, 4.0, 16.0), target) == level


def test_a_level_within_one_percent_is_fine_enough() -> None:
    assert best_level((1.0, 4.0003), 4.0) == 1


@settings(max_examples=200, deadline=None)
@given(
    x=st.integers(0, 5000),
    y=st.integers(0, 5000),
    side=st.floats(10, 900),
    downsample=st.sampled_from([1.0, 2.0, 4.0, 4.000266, 16.0]),
)
def test_a_window_contains_its_footprint_and_less_than_two_pixels_more(
    x: int, y: int, side: float, downsample: float
) -> None:
    w = window((x, y), (side, side), 1, downsample)
    left, top, right, bottom = w.box
    assert left >= 0
    assert top >= 0
    assert right <= w.size[0]
    assert bottom <= w.size[1]
    assert right - left == pytest.approx(side / downsample, abs=1e-6)
    assert w.size[0] < side / downsample + 2
    assert w.xy_px0[0] + left * downsample == pytest.approx(x, abs=1.0)  # the region's corner is a whole px0


def test_rounded_corners_never_drift() -> None:
    columns, _ = grid_corners_px0((100_000, 1000), (224.449, 224.449), (224.449, 224.449))
    assert columns[400] == round(400 * 224.449)
    assert int(np.diff(columns).min()) == 224
    assert int(np.diff(columns).max()) == 225


def test_every_patch_has_at_least_half_of_itself_inside() -> None:
    columns, rows = grid_corners_px0((1000, 600), (224.0, 224.0), (224.0, 224.0))
    assert columns.tolist() == [0, 224, 448, 672]
    assert rows.tolist() == [0, 224, 448]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), mask_side=st.floats(3.0, 40.0), side=st.floats(5.0, 90.0))
def test_covered_fraction_equals_the_sum_over_mask_pixels(seed: int, mask_side: float, side: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 11)) < 0.5
    xy = rng.integers(-20, 300, (5, 2))
    got = box_fractions(mask, (mask_side, mask_side * 1.1), xy, (side, side * 0.9))
    for (x, y), fraction in zip(xy, got, strict=True):
        covered = 0.0
        for row in range(9):
            for column in range(11):
                width = min(x + side, (column + 1) * mask_side) - max(x, column * mask_side)
                height = min(y + side * 0.9, (row + 1) * mask_side * 1.1) - max(y, row * mask_side * 1.1)
                if mask[row, column] and width > 0 and height > 0:
                    covered += width * height
        assert fraction == pytest.approx(covered / (side * side * 0.9), abs=1e-9)
