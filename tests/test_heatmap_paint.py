"""The arithmetic of the maps against slow, obvious definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import grid_corners_px0
from wsi_pipeline.heatmap import cell_side_px0, halve, paint_block, raster_shape
from wsi_pipeline.heatmap.metadata import display_range, is_constant, primary
from wsi_pipeline.heatmap.pyramid import level_shapes
from wsi_pipeline.types import Float32, PatchGrid, Unit

quick = settings(max_examples=60, deadline=None, database=None)
UNBOUNDED: list[Unit] = ["attention", "value", "risk", "distance"]


def grid_of(
    size_px0: tuple[int, int], side: tuple[float, float], stride: tuple[float, float], keep: float = 1.0, seed: int = 0
) -> PatchGrid:
    """The regular grid of a slide, with a random subset of its patches."""
    columns, rows = grid_corners_px0(size_px0, side, stride)
    xy = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    kept = np.random.default_rng(seed).random(len(xy)) < keep
    return PatchGrid("s", xy[kept], 224, side, stride, 0.5, (0.25, 0.25), size_px0, (0, 0, *size_px0))


def scores_of(grid: PatchGrid, channels: int = 2) -> Float32:
    return np.random.default_rng(7).normal(size=(channels, len(grid))).astype(np.float32)


def paint_by_definition(
    grid: PatchGrid, scores: Float32, cell: int, row0: int, col0: int, rows: int, cols: int
) -> Float32:
    """For each cell, the mean of the patches that contain its centre."""
    out = np.full((len(scores), rows, cols), np.nan, np.float32)
    for row in range(rows):
        for col in range(cols):
            y, x = (row0 + row + 0.5) * cell, (col0 + col + 0.5) * cell
            inside = [
                k
                for k, (left, top) in enumerate(grid.xy_px0)
                if left <= x < left + grid.side_px0[0] and top <= y < top + grid.side_px0[1]
            ]
            for c in range(len(scores)):
                if inside:
                    out[c, row, col] = sum(float(scores[c, k]) for k in inside) / len(inside)
    return out


sides = st.floats(2.0, 90.0)
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.7])


@quick
@given(sides, sides, overlaps, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5), st.floats(0.2, 1.0))
def test_a_cell_is_the_mean_of_the_patches_that_contain_its_centre(
    width: float, height: float, overlap: float, cell: int, row0: int, col0: int, keep: float
) -> None:
    side, stride = (width, height), (width * (1 - overlap), height * (1 - overlap))
    grid = grid_of((int(width * 4) + 3, int(height * 3) + 2), side, stride, keep)
    scores = scores_of(grid)
    painted = paint_block(grid, scores, cell, row0, col0, 6, 7)
    assert painted.dtype == np.float32
    np.testing.assert_array_equal(painted, paint_by_definition(grid, scores, cell, row0, col0, 6, 7))


@quick
@given(st.floats(3.0, 60.0), overlaps, st.integers(2, 9), st.integers(9, 40), st.integers(9, 40))
def test_blocks_equal_the_whole_bit_for_bit(side: float, overlap: float, cell: int, tall: int, wide: int) -> None:
    grid = grid_of((150, 110), (side, side), (side * (1 - overlap),) * 2, 0.8)
    scores = scores_of(grid)
    rows, cols = raster_shape(grid.slide_size_px0, cell)
    whole = paint_block(grid, scores, cell, 0, 0, rows, cols)
    for row0 in range(0, rows, tall):
        for col0 in range(0, cols, wide):
            block = paint_block(grid, scores, cell, row0, col0, min(tall, rows - row0), min(wide, cols - col0))
            np.testing.assert_array_equal(block, whole[:, row0 : row0 + tall, col0 : col0 + wide])


def test_a_footprint_contains_its_left_edge_but_not_its_right() -> None:
    grid = PatchGrid(
        "s", np.array([[2, 0], [6, 0]]), 4, (4.0, 4.0), (4.0, 4.0), 1.0, (1.0, 1.0), (12, 4), (0, 0, 12, 4)
    )
    painted = paint_block(grid, np.array([[1.0, 2.0]], np.float32), 4, 0, 0, 1, 3)  # centres at x = 2, 6, 10
    np.testing.assert_array_equal(painted, [[[1.0, 2.0, np.nan]]])


@quick
@given(st.floats(2.0, 3000.0), st.floats(2.0, 3000.0), st.integers(0, 2**31))
def test_the_cell_at_a_patchs_centre_has_its_score_exactly(width: float, height: float, seed: int) -> None:
    side = (width, height)
    grid = grid_of((int(width * 9.5) + 1, int(height * 9.5) + 1), side, side, 0.9, seed)
    cell = cell_side_px0(grid, None)
    assert cell in (1, 2, 4, 8, 16, 32)
    scores = scores_of(grid)
    for k, (x, y) in enumerate(grid.centre_px0):
        painted = paint_block(grid, scores, cell, int(y // cell), int(x // cell), 1, 1)
        np.testing.assert_array_equal(painted[:, 0, 0], scores[:, k])


@pytest.mark.parametrize(
    ("side", "stride", "cell"),
    [
        (448.0, 448.0, 32),
        (64.0, 64.0, 32),
        (63.9, 63.9, 16),
        (448.0, 112.0, 32),
        (448.0, 30.0, 8),
        (3.0, 3.0, 1),
        (1.2, 1.2, 1),
    ],
)
def test_a_cell_is_the_largest_power_of_two_up_to_32_and_half_the_stride(side: float, stride: float, cell: int) -> None:
    assert cell_side_px0(grid_of((1000, 1000), (side, side), (stride, stride)), None) == cell


def test_a_cell_that_would_lose_patches_is_an_error() -> None:
    grid = grid_of((400, 400), (40.0, 50.0), (40.0, 50.0))
    assert cell_side_px0(grid, 20) == 20
    with pytest.raises(ConfigError, match=r"heatmap\.cell_px0 = 21 is more than half a patch of slide s .*at most 20"):
        cell_side_px0(grid, 21)


def test_the_raster_covers_the_slide_from_its_corner() -> None:
    assert raster_shape((6400, 3200), 32) == (100, 200)
    assert raster_shape((6401, 3201), 32) == (101, 201)


def test_halving_is_the_mean_of_the_defined_cells() -> None:
    n = np.nan
    block = np.array([[[1, 2, 3], [n, 6, n], [n, n, 8], [n, n, n]]], np.float32)
    np.testing.assert_array_equal(halve(block), [[[3.0, 3.0], [n, 8.0]]])


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_halving_equals_nanmean_with_odd_edges_unchanged(rows: int, cols: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = rng.normal(size=(2, rows, cols)).astype(np.float32)
    block[rng.random(block.shape) < 0.5] = np.nan
    half = halve(block)
    assert half.shape == (2, (rows + 1) // 2, (cols + 1) // 2)
    for (c, row, col), value in np.ndenumerate(half):
        four = block[c, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].astype(np.float64)
        defined = four[~np.isnan(four)]
        if defined.size:
            assert value == pytest.approx(defined.mean(), rel=1e-6, abs=1e-7)
        else:
            assert np.isnan(value)


def test_levels_are_halved_until_the_larger_side_is_at_most_256() -> None:
    assert level_shapes((100, 256)) == [(100, 256)]
    assert level_shapes((3, 1025)) == [(3, 1025), (2, 513), (1, 257), (1, 129)]


def test_display_windows() -> None:
    scores = np.array([-3.0, 1.0, 2.0, np.nan, np.inf], np.float32)
    assert display_range(scores, "attribution", True)[0] == (-3.0, 3.0)
    low, high = display_range(scores, "attribution", True)[1]
    assert -3.0 < low == -high
    assert display_range(np.array([0.2, 0.4], np.float32), "probability", False) == ((0.0, 1.0), (0.0, 1.0))
    ramp = np.arange(101, dtype=np.float32)
    for unit in UNBOUNDED:
        assert display_range(ramp - 30, unit, False) == ((-30.0, 70.0), (-29.0, 69.0))
    assert display_range(ramp / np.float32(100), "fraction", False) == ((0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize("unit", UNBOUNDED)
@pytest.mark.parametrize("value", [1.0, 0.004, 0.0, -2.5])
def test_a_constant_map_has_the_first_colour(unit: Unit, value: float) -> None:
    scores = np.full(5, value, np.float32)
    (low, high), (start, end) = display_range(scores, unit, False)
    assert low <= start < end <= high
    assert start == scores[0]
    rounding = np.nextafter(scores, np.float32(10), dtype=np.float32)
    rounding[0] = scores[0]
    assert is_constant(rounding)
    assert display_range(rounding, unit, False)[1][0] == rounding.max()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, float("nan")])
def test_a_window_is_never_empty_and_never_nan(value: float, signed: bool) -> None:
    for low, high in display_range(np.full(4, value, np.float32), "attribution", signed):
        assert low < high


def test_the_first_models_contribution_is_shown_first_then_instance_then_attention() -> None:
    a, b = "abmil", "transmil"
    assert primary([(a, "attention"), (a, "contribution"), (b, "contribution")]) == 1
    assert primary([(a, "attention"), (a, "instance"), (b, "contribution")]) == 1
    assert primary([(b, "gradient_x_input"), (b, "attention"), (a, "contribution")]) == 1
    assert primary([(a, "gradient_x_input"), (b, "contribution")]) == 0
    several = [(a, "contribution"), (a, "lrp"), (b, "lrp")]
    assert primary(several, [False, True, True]) == 1
    assert primary(several, [False, False, True]) == 0
