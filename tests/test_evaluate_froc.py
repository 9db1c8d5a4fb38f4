"""The FROC equals the challenge's: slow loops written from its rules, on slides with every kind of lesion."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from shapely.geometry import MultiPolygon, Polygon, box
from skimage.measure import regionprops

from wsi_pipeline.evaluate.detections import Detections, detections, detections_csv
from wsi_pipeline.evaluate.froc import (
    CELL_PX0,
    MPP,
    SlideFroc,
    evaluation_mask,
    froc_curve,
    froc_score,
    isolated_tumour_cells,
    sensitivities,
    slide_froc,
    strongest,
)
from wsi_pipeline.types import Explanation, PatchGrid

Cell = tuple[int, int]
Point = tuple[float, float, float]  # probability, x, y


def multi(*shapes: shapely.geometry.base.BaseGeometry) -> MultiPolygon:
    parts = shapely.get_parts(shapely.union_all(shapes))
    return MultiPolygon([p for p in parts if isinstance(p, Polygon)])


def cells(x: float, y: float, width: float, height: float) -> Polygon:
    """A rectangle given in cells, in level-0 pixels."""
    return box(x * CELL_PX0, y * CELL_PX0, (x + width) * CELL_PX0, (y + height) * CELL_PX0)


# --- the challenge, slowly -----------------------------------------------------------------------------------


def slow_mask(area: MultiPolygon, width: int, height: int, mpp: float) -> list[set[Cell]]:
    """Lesions as sets of (row, column), from the rules of the challenge."""
    drawn = {
        (r, c)
        for r, c in itertools.product(range(height), range(width))
        if shapely.contains_xy(area, (c + 0.5) * CELL_PX0, (r + 0.5) * CELL_PX0)
    }
    reach = 75 / (mpp * 2**5 * 2)
    disc = [(i, j) for i, j in itertools.product(range(-20, 21), range(-20, 21)) if math.hypot(i, j) < reach]
    dilated = {(r + i, c + j) for r, c in drawn for i, j in disc}
    outside: set[Cell] = set()
    for start in itertools.product(range(height), range(width)):
        at_border = start[0] in (0, height - 1) or start[1] in (0, width - 1)
        if at_border and start not in dilated and start not in outside:
            outside |= flood(start, lambda cell: inside(cell, width, height) and cell not in dilated, corners=False)
    filled = {cell for cell in itertools.product(range(height), range(width)) if cell not in outside}
    lesions: list[set[Cell]] = []
    for start in sorted(filled):
        if not any(start in lesion for lesion in lesions):
            lesions.append(flood(start, filled.__contains__, corners=True))
    return lesions


def inside(cell: Cell, width: int, height: int) -> bool:
    return 0 <= cell[0] < height and 0 <= cell[1] < width


def flood(start: Cell, free, corners: bool) -> set[Cell]:  # type: ignore[no-untyped-def]
    reached, queue = {start}, deque([start])
    while queue:
        r, c = queue.popleft()
        for i, j in itertools.product((-1, 0, 1), (-1, 0, 1)):
            step = (r + i, c + j)
            if (corners or not i or not j) and step not in reached and free(step):
                reached.add(step)
                queue.append(step)
    return reached


def slow_curve(
    slides: Sequence[tuple[Sequence[Point], Sequence[set[Cell]], set[int]]],
) -> tuple[list[float], list[float]]:
    """The curve from its end. Per slide: detections, lesions, and which of these (from 0) are isolated tumour cells."""
    false: list[float] = []
    highest: list[float] = []
    targets = 0
    for points, lesions, isolated in slides:
        best = [0.0] * len(lesions)
        for p, x, y in points:
            hit = [i for i, lesion in enumerate(lesions) if (int(y / 32), int(x / 32)) in lesion]
            if not hit:
                false.append(p)
            elif hit[0] not in isolated:
                best[hit[0]] = max(best[hit[0]], p)
        highest += best
        targets += len(lesions) - len(isolated)
    false_rate, sensitivity = [], []
    for threshold in sorted(set(false) | set(highest))[1:]:
        false_rate.append(sum(p >= threshold for p in false) / len(slides))
        sensitivity.append(sum(p >= threshold for p in highest) / targets)
    return [*false_rate, 0.0], [*sensitivity, 0.0]


def slow_score(false_rate: Sequence[float], sensitivity: Sequence[float]) -> float:
    """Mean of linear interpolations between the points at six rates; of several points at one rate, the highest."""
    points = sorted(zip(false_rate, sensitivity, strict=True))
    at = []
    for rate in (0.25, 0.5, 1, 2, 4, 8):
        below = [p for p in points if p[0] <= rate][-1]
        above = [p for p in points if p[0] > rate]
        weight = (rate - below[0]) / (above[0][0] - below[0]) if above else 0.0
        at.append(below[1] + weight * ((above[0][1] if above else below[1]) - below[1]))
    return sum(at) / 6


# --- random slides -------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 26, 20  # cells
SIZE_PX0 = (WIDTH * CELL_PX0, HEIGHT * CELL_PX0 - 5)


def drawn_area(rng: np.random.Generator, kind: int) -> MultiPolygon:
    """0: empty; 1: rectangles that may merge; 2: a ring with a hole; 3: specks; 4: triangles, also at the border."""
    places = rng.uniform(-2, 1.02, (3, 2)) * (WIDTH, HEIGHT) % (WIDTH, HEIGHT)
    if kind == 1:
        return multi(*(cells(x, y, *rng.uniform(1, 14, 2)) for x, y in places))
    if kind == 2:
        x, y = places[0]
        hole = rng.uniform(2, 14)
        return multi(cells(x, y, hole + 4, hole + 4).difference(cells(x + 2, y + 2, hole, hole)))
    if kind == 3:
        return multi(*(cells(x, y, *rng.uniform(0.1, 2, 2)) for x, y in places))
    if kind == 4:
        triangles = [Polygon((place + rng.uniform(-12, 12, (3, 2))) * CELL_PX0) for place in places]
        return multi(*triangles)
    return MultiPolygon()


def drawn_points(rng: np.random.Generator, count: int, digits: int) -> list[Point]:
    """Detections anywhere on the slide, with ties among their probabilities."""
    p = rng.uniform(0.05, 1, count).round(digits).astype(np.float32)
    xy = rng.integers(0, (WIDTH * CELL_PX0, HEIGHT * CELL_PX0), (count, 2))
    return [(float(q), float(x), float(y)) for q, (x, y) in zip(p, xy, strict=True)]


def as_arrays(points: Sequence[Point]) -> Detections:
    table = np.array(points, np.float64).reshape(-1, 3)
    return Detections(table[:, 0].astype(np.float32), table[:, 1:].astype(np.int64))


def test_equals_the_challenge_on_random_slides() -> None:
    for seed in range(200):
        check_equals_the_challenge(seed)


def check_equals_the_challenge(seed: int) -> None:
    """Mask and isolated tumour cells of three slides, then their curve and score."""
    rng = np.random.default_rng(seed)
    slow, fast = [], []
    for kind in rng.integers(0, 5, 3):
        mpp = float(rng.choice([MPP, 0.8, 1.2, 1.2]))  # coarser cells: less dilation in cells, and more targets
        area = drawn_area(rng, int(kind))
        lesions = slow_mask(area, WIDTH, HEIGHT, mpp)
        mask = evaluation_mask(area, SIZE_PX0, mpp)
        numbers = [{int(mask[cell]) for cell in lesion} for lesion in lesions]
        assert mask.shape == (HEIGHT, WIDTH)
        assert np.count_nonzero(mask) == sum(map(len, lesions))
        assert sorted(numbers, key=min) == [{i} for i in range(1, len(lesions) + 1)]
        isolated = isolated_tumour_cells(mask, mpp)
        assert isolated == {p.label for p in regionprops(mask) if p.axis_major_length < 275 / (mpp * 32)}  # type: ignore[no-untyped-call]
        points = drawn_points(rng, int(rng.integers(0, 60)) * int(rng.integers(0, 3) > 0), 1 + seed % 3)
        slow.append((points, lesions, {i for i, number in enumerate(numbers) if number <= isolated}))
        fast.append(slide_froc(*as_arrays(points), mask, isolated))
    curve = froc_curve(fast)
    if not any(len(lesions) > len(isolated) for _, lesions, isolated in slow):
        assert np.isnan(curve[1]).all()
        return
    false_rate, sensitivity = slow_curve(slow)
    assert curve[0].tolist() == pytest.approx(false_rate[::-1])
    assert curve[1].tolist() == pytest.approx(sensitivity[::-1])
    assert froc_score(*curve) == pytest.approx(slow_score(false_rate, sensitivity))


def test_the_random_slides_contain_every_kind_of_lesion() -> None:
    """Isolated tumour cells and targets on one slide, filled holes, merged outlines, missed lesions, no lesion."""
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        area = drawn_area(rng, seed % 5)
        mask = evaluation_mask(area, SIZE_PX0, 1.2)
        isolated = isolated_tumour_cells(mask, 1.2)
        seen |= {"both"} if 0 < len(isolated) < mask.max() else set()
        seen |= {"merged"} if mask.max() < len(area.geoms) else set()
        seen |= {"none"} if not mask.any() else set()
        holes = sum(len(p.interiors) for p in area.geoms)
        seen |= {"hole"} if holes else set()
    assert seen == {"both", "merged", "none", "hole"}


# --- MONAI ---------------------------------------------------------------------------------------------------


def monai_probabilities(
    probs: Sequence[float], ys: Sequence[float], xs: Sequence[float], mask: list[list[int]], exclude: Sequence[int]
) -> tuple[list[float], list[float], int]:
    """monai.metrics.froc.compute_fp_tp_probs with resolution_level=5, from its definition."""
    highest = max(map(max, mask))
    false, best = [], [0.0] * highest
    for p, y, x in zip(probs, ys, xs, strict=True):
        number = mask[int(y / 2**5)][int(x / 2**5)]
        if number == 0:
            false.append(p)
        elif number not in exclude:
            best[number - 1] = max(best[number - 1], p)
    return false, best, highest - len(exclude)


def test_equals_monai() -> None:
    """MONAI pools false positives, lesion maxima and counts over the slides and computes the same curve.

    For probabilities above 0 the two definitions agree: in both a missed lesion enters as 0, the lowest threshold is
    dropped, isolated tumour cells keep an entry of 0, and false positives are divided by the number of images.
    A detection outside the mask is an error there and a false positive here.
    """
    compared = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        false: list[float] = []
        best: list[float] = []
        targets, slides = 0, []
        for _ in range(3):
            mask = evaluation_mask(drawn_area(rng, int(rng.integers(0, 5))), SIZE_PX0, 1.2)
            isolated = isolated_tumour_cells(mask, 1.2)
            points = drawn_points(rng, 30, 2)
            p, x, y = zip(*points, strict=True)
            more_false, more_best, more = monai_probabilities(p, y, x, mask.tolist(), sorted(isolated))
            false, best, targets = false + more_false, best + more_best, targets + more
            slides.append(slide_froc(*as_arrays(points), mask, isolated))
        if targets:
            thresholds = sorted({*false, *best})[1:]
            false_rate = [sum(q >= t for q in false) / 3 for t in thresholds] + [0.0]
            sensitivity = [sum(q >= t for q in best) / targets for t in thresholds] + [0.0]
            curve = froc_curve(slides)
            assert (curve[0][::-1].tolist(), curve[1][::-1].tolist()) == (
                pytest.approx(false_rate),
                pytest.approx(sensitivity),
            )
            score = np.mean(np.interp([0.25, 0.5, 1, 2, 4, 8], false_rate[::-1], sensitivity[::-1]))
            assert froc_score(*curve) == pytest.approx(float(score))
            compared += 1
    assert compared > 40


# --- literal answers -----------------------------------------------------------------------------------------


def matched(false: Sequence[float], lesions: Sequence[float], targets: int) -> SlideFroc:
    return SlideFroc(np.array(false, np.float32), np.array(lesions, np.float32), targets)


def test_a_curve_computed_by_hand() -> None:
    """Two slides, three lesions, one missed: 0 is the lowest threshold, which is left out."""
    curve = froc_curve([matched([0.5, 0.25], [0.75, 0.0], 2), matched([0.5], [0.25], 1)])
    assert curve[0].tolist() == [0, 0, 1, 1.5]  # nothing, 0.75, 0.5, 0.25
    assert curve[1].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3])
    assert froc_score(*curve) == pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 2 / 3 + 2 / 3 + 2 / 3) / 6)


def test_where_no_lesion_is_missed_the_lowest_detection_is_left_out() -> None:
    curve = froc_curve([matched([0.25], [0.75, 0.5], 2)])
    assert curve[0].tolist() == [0, 0, 0]
    assert curve[1].tolist() == [0, 0.5, 1]
    lost = froc_curve([matched([0.75], [0.5], 1)])  # the challenge's rule, although the lesion was detected
    assert (lost[0].tolist(), lost[1].tolist()) == ([0, 1], [0, 0])


def test_without_detections_the_sensitivity_is_zero() -> None:
    curve = froc_curve([matched([], [0.0, 0.0], 2), matched([], [], 0)])
    assert (curve[0].tolist(), curve[1].tolist()) == ([0.0], [0.0])
    assert froc_score(*curve) == 0


def test_every_detection_on_a_normal_slide_is_a_false_positive() -> None:
    found = slide_froc(*as_arrays([(0.5, 0, 0), (0.75, 900, 40)]), np.zeros((0, 0), np.int32))
    assert (found.false_positives.tolist(), found.lesions.tolist(), found.targets) == ([0.5, 0.75], [], 0)


def test_a_lesion_has_its_highest_detection_and_those_in_isolated_cells_are_ignored() -> None:
    mask = np.array([[1, 1, 0, 2]], np.int32)
    points = as_arrays([(0.25, 0, 0), (0.75, 63, 31), (0.5, 64, 0), (1.0, 100, 5), (0.125, 128, 0)])
    found = slide_froc(*points, mask, {2})
    assert found.lesions.tolist() == [0.75, 0.0]
    assert found.false_positives.tolist() == [0.5, 0.125]  # the last lies outside the slide
    assert found.targets == 1


def test_outlines_are_dilated_by_four_cells_and_joined_within_75_micrometres() -> None:
    """Dilation by 4.82 cells: those at distance 4 are added; a gap of eight cells is bridged, one of nine is not."""
    size = (100 * 32, 60 * 32)
    one = evaluation_mask(multi(cells(40, 30, 1, 1)), size)
    assert one[30].nonzero()[0].tolist() == list(range(36, 45))
    assert (one[34, 42], one[34, 43]) == (1, 0)  # hypot(4, 2) = 4.47, hypot(4, 3) = 5
    assert evaluation_mask(multi(cells(30, 20, 5, 20), cells(43, 20, 5, 20)), size).max() == 1
    assert evaluation_mask(multi(cells(30, 20, 5, 20), cells(44, 20, 5, 20)), size).max() == 2


def test_a_lesion_of_forty_cells_is_a_target_and_one_of_twenty_is_not() -> None:
    """Axis of 4 sd: a bar of n cells has an sd of sqrt((n² - 1) / 12). The limit is 35.36 cells: n = 30.6."""
    mask = np.zeros((7, 60), np.int32)
    mask[1, :30], mask[3, :31], mask[5, 7] = 1, 2, 3
    assert isolated_tumour_cells(mask) == {1, 3}


def test_holes_inside_an_outline_are_filled() -> None:
    ring = multi(cells(10, 10, 40, 40).difference(cells(20, 20, 20, 20)))
    mask = evaluation_mask(ring, (60 * 32, 60 * 32))
    assert mask[30, 30] == 1


def test_outlines_beyond_the_slide_are_clipped() -> None:
    mask = evaluation_mask(multi(cells(-10, -10, 12, 12), cells(50, 5, 100, 3)), (30 * 32, 20 * 32))
    assert mask.shape == (20, 30)
    assert mask[:5, :5].all()
    assert mask.max() == 1


def test_a_speck_between_all_centres_is_not_a_lesion() -> None:
    assert not evaluation_mask(multi(box(33, 33, 40, 40)), (640, 640)).any()


# --- the highest false positives -----------------------------------------------------------------------------


def test_a_few_more_false_positives_than_eight_per_slide_give_the_same_curve_up_to_eight() -> None:
    for seed in range(30):
        check_more_false_positives(seed)


def check_more_false_positives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slides, fewer = [], []
    for i in range(3):
        false = rng.random(rng.integers(0, 80)).astype(np.float32).round(1 + seed % 3)
        lesions = rng.choice([0, 0.05, 0.5, 0.9], i + seed % 2).astype(np.float32)
        slides.append(SlideFroc(false, lesions, len(lesions)))
        fewer.append(SlideFroc(strongest(false, 8 * 3 + 1), lesions, len(lesions)))
    for rows in ([0, 1, 2], [0, 0, 0], [2, 2, 1]):  # including resamples
        expected = sensitivities(*froc_curve([slides[i] for i in rows]))
        np.testing.assert_array_equal(sensitivities(*froc_curve([fewer[i] for i in rows])), expected)


def test_the_highest_false_positives_are_kept_with_ties_and_the_next_lower_one() -> None:
    false = np.array([0.25, 0.5, 0.125, 0.5, 0.75, 0.0625], np.float32)
    assert strongest(false, 2).tolist() == [0.75, 0.5, 0.5, 0.25]
    assert strongest(false, 6).tolist() == [0.75, 0.5, 0.5, 0.25, 0.125, 0.0625]
    assert strongest(np.full(4, 0.5, np.float32), 2).tolist() == [0.5] * 4


# --- detections ----------------------------------------------------------------------------------------------


def explanation(xy_px0: np.ndarray, scores: np.ndarray, mpp: tuple[float, float] = (0.5, 0.5)) -> Explanation:
    grid = PatchGrid("s", xy_px0, 225, (225.0, 225.0), (225.0, 225.0), 0.5, mpp, (10**5, 10**5), (0, 0, 10**5, 10**5))
    return Explanation(grid, scores.astype(np.float32), "instance", "abmil", "tumour", "probability", False)


def slow_detections(given: Explanation, radius_um: float) -> list[Point]:
    left = [(float(s), i) for i, s in enumerate(given.scores) if s > 0]
    centres = [(x + 112.5, y + 112.5) for x, y in given.grid.xy_px0.tolist()]
    kept = []
    while left:
        best = max(left, key=lambda entry: (entry[0], -entry[1]))
        x, y = centres[best[1]]
        kept.append((best[0], float(int(x)), float(int(y))))
        left = [
            entry
            for entry in left
            if math.hypot(
                (centres[entry[1]][0] - x) * given.grid.mpp[0], (centres[entry[1]][1] - y) * given.grid.mpp[1]
            )
            > radius_um * (1 + 1e-9)
        ]
    return kept


@pytest.mark.parametrize("radius_um", [1.0, 112.5, 160.0, 300.0, 5000.0])
def test_detections_are_the_highest_patch_then_the_highest_outside_its_radius(radius_um: float) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        whole = np.array(list(itertools.product(range(12), range(12))), np.int64)[:, ::-1] * 225
        xy = whole[np.sort(rng.permutation(144)[: rng.integers(1, 144)])]
        scores = rng.normal(0.3, 0.4, len(xy)).round(1 + seed % 2)  # ties, zeros and below
        given = explanation(xy, scores, (0.5, 0.4 + 0.1 * (seed % 2)))
        found = detections(given.scores, given.grid, radius_um)
        points = [(p, x, y) for p, (x, y) in zip(found.probability.tolist(), found.xy_px0.tolist(), strict=True)]
        assert points == slow_detections(given, radius_um)


def test_patches_without_evidence_for_the_class_give_no_detections() -> None:
    given = explanation(np.array([[0, 0], [900, 0]]), np.array([0.0, -1.0]))
    found = detections(given.scores, given.grid, 100.0)
    assert (len(found.probability), found.xy_px0.shape) == (0, (0, 2))
    assert detections_csv(found) == ""


def test_detections_are_written_in_the_challenges_format() -> None:
    given = explanation(np.array([[0, 0], [900, 450]]), np.array([0.1, 0.75]))
    found = detections(given.scores, given.grid, 100.0)
    assert detections_csv(found) == "0.75,1012,562\n0.10000000149011612,112,112\n"
    assert [np.float32(line.split(",")[0]) for line in detections_csv(found).splitlines()] == [0.75, np.float32(0.1)]
