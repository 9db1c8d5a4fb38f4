"""Measures against numbers computed by hand; intervals and annotated fractions against slow, obvious loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon, box
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from wsi_pipeline.evaluate.bootstrap import Interval, intervals, resamples
from wsi_pipeline.evaluate.localisation import annotated_fractions, localisation, positive_patches
from wsi_pipeline.evaluate.metrics import classification_metrics, decide
from wsi_pipeline.types import Float64, Int64, PatchGrid

# --- metrics -------------------------------------------------------------------------------------------------


def slide_metrics(truth: Int64, probabilities: Float64, predicted: Int64) -> dict[str, float]:
    return classification_metrics(truth, probabilities, predicted, "abcdef"[: probabilities.shape[1]])


def two(scores: list[float]) -> Float64:
    """Probabilities (n, 2) of the negative and the positive class."""
    return np.array([[1 - s, s] for s in scores])


def test_the_metrics_of_five_slides_computed_by_hand() -> None:
    truth = np.array([0, 0, 1, 1, 1])
    probabilities = two([0.1, 0.6, 0.4, 0.7, 0.9])
    predicted = decide(probabilities, np.full(5, 0.5))
    assert predicted.tolist() == [0, 1, 0, 1, 1]
    found = slide_metrics(truth, probabilities, predicted)
    assert tuple(found) == ("auroc", "auprc", "balanced_accuracy", "f1", "accuracy")
    # Of the 6 pairs only (0.6, 0.4) is in the wrong order. By falling score: +, +, -, +, -.
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["accuracy"] == pytest.approx(3 / 5)


def test_tied_scores_count_half() -> None:
    truth = np.array([0, 1])
    assert slide_metrics(truth, two([0.5, 0.5]), truth)["auroc"] == 0.5


def test_every_slide_has_its_own_threshold_and_reaching_it_is_positive() -> None:
    scores, threshold = two([0.3, 0.3, 0.3, 0.5]), np.array([0.2, 0.3, 0.4, np.nan])
    assert decide(scores, threshold).tolist() == [1, 1, 0, 1]


def test_of_three_classes_the_most_probable_is_predicted() -> None:
    assert decide(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]), np.full(2, np.nan)).tolist() == [1, 0]


def test_three_classes_are_measured_each_against_the_rest_and_averaged() -> None:
    truth = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.1, 0.4, 0.5], [0.3, 0.1, 0.6]])
    predicted = decide(probabilities, np.full(4, np.nan))
    assert predicted.tolist() == [0, 0, 2, 2]
    found = slide_metrics(truth, probabilities, predicted)
    # Class 1: one slide at 0.3 against 0.3, 0.4, 0.1: half a pair, none, one; its tie ranks it third of three.
    assert found["auroc"] == pytest.approx((1 + 1.5 / 3 + 1) / 3)
    assert found["auprc"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert [found[f"auroc[{c}]"] for c in "abc"] == pytest.approx([1, 1.5 / 3, 1])


def test_with_a_class_missing_only_accuracy_is_defined() -> None:
    found = slide_metrics(np.array([1, 1]), two([0.9, 0.2]), np.array([1, 0]))
    assert found.pop("accuracy") == 0.5
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_equal_those_of_scikit_learn(classes: int) -> None:
    generator = np.random.default_rng(classes)
    truth = np.concatenate([np.arange(classes), generator.integers(0, classes, 60)])
    probabilities = generator.dirichlet(np.ones(classes), len(truth))
    predicted = decide(probabilities, np.full(len(truth), 0.4))
    found = slide_metrics(truth, probabilities, predicted)
    average = "binary" if classes == 2 else "macro"
    positive = np.eye(classes)[truth] if classes > 2 else truth
    scores = probabilities if classes > 2 else probabilities[:, 1]
    assert found["auroc"] == pytest.approx(roc_auc_score(positive, scores))
    assert found["auprc"] == pytest.approx(average_precision_score(positive, scores))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(f1_score(truth, predicted, average=average))


# --- intervals -----------------------------------------------------------------------------------------------


def test_a_resample_draws_patients_and_takes_all_their_slides() -> None:
    patients = ["b", "a", "b", "c", "a", "b"]
    rows_of = {"a": [1, 4], "b": [0, 2, 5], "c": [3]}
    oracle = np.random.default_rng(7)
    for rows in resamples(patients, 20, np.random.default_rng(7)):
        expected = [row for i in oracle.integers(0, 3, 3) for row in rows_of["abc"[i]]]
        assert rows.tolist() == expected


def test_intervals_are_the_percentiles_of_the_statistic_over_resampled_patients() -> None:
    patients = ["a", "a", "b", "c", "c", "d"]
    values = np.array([1.0, 2.0, 8.0, -3.0, 0.5, 4.0])
    found = intervals(lambda rows: {"mean": float(values[rows].mean())}, patients, 200, seed=3)
    generator, means = np.random.default_rng(3), []
    for _ in range(200):
        drawn = []
        for i in generator.integers(0, 4, 4):
            drawn += [v for v, patient in zip(values, patients, strict=True) if patient == "abcd"[i]]
        means.append(sum(drawn) / len(drawn))
    means.sort()

    def percentile(fraction: float) -> float:
        position = fraction * (len(means) - 1)
        below = int(position)
        return float(means[below] + (position - below) * (means[below + 1] - means[below]))

    assert found["mean"].value == pytest.approx(12.5 / 6)
    assert found["mean"].low == pytest.approx(percentile(0.025))
    assert found["mean"].high == pytest.approx(percentile(0.975))
    assert found["mean"].n == 200


def test_resamples_in_which_a_measure_is_undefined_are_left_out_and_counted() -> None:
    truth = np.array([0, 1, 1])

    def fraction_if_both(rows: Int64) -> dict[str, float]:
        drawn = truth[rows]
        return {"fraction": float(drawn.mean()) if 0 < drawn.sum() < len(drawn) else float("nan")}

    found = intervals(fraction_if_both, ["a", "b", "c"], 300, seed=0)["fraction"]
    drawn = list(resamples(["a", "b", "c"], 300, np.random.default_rng(0)))
    defined = [value for rows in drawn if not math.isnan(value := fraction_if_both(rows)["fraction"])]
    assert found.n == len(defined) < 300
    assert (found.low, found.high) == (min(defined), max(defined)) == (1 / 3, 2 / 3)


def test_one_patient_gives_no_interval() -> None:
    found = intervals(lambda rows: {"n": float(len(rows))}, ["a", "a"], 50, seed=0)["n"]
    assert found.value == 2
    assert math.isnan(found.low)
    assert found.n == 0


def test_an_undefined_measure_has_no_interval() -> None:
    found = intervals(lambda rows: {"n": float("nan")}, ["a", "b"], 50, seed=0)["n"]
    assert [math.isnan(number) for number in found[:3]] == [True] * 3
    assert found.n == 0


def test_the_interval_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).standard_normal(20)
    patients = [f"p{i}" for i in range(20)]

    def interval(seed: int) -> Interval:
        return intervals(lambda rows: {"mean": float(values[rows].mean())}, patients, 100, seed)["mean"]

    assert interval(0) == interval(0)
    assert interval(0) != interval(1)


# --- localisation --------------------------------------------------------------------------------------------


def grid(xy_px0: list[tuple[int, int]], side_px0: tuple[float, float]) -> PatchGrid:
    return PatchGrid(
        slide_id="s",
        xy_px0=np.array(xy_px0, np.int64).reshape(-1, 2),
        side_px=10,
        side_px0=side_px0,
        stride_px0=side_px0,
        target_mpp=1.0,
        mpp=(1.0, 1.0),
        slide_size_px0=(100, 100),
        bounds_px0=(0, 0, 100, 100),
    )


def test_the_annotated_fraction_of_a_patch_is_exact_and_excludes_holes() -> None:
    area = shapely.union_all([box(0, 0, 25, 20).difference(box(12, 2, 17, 8)), box(40, 40, 41, 50)])
    corners = [(0, 0), (10, 0), (20, 0), (20, 15), (36, 40), (60, 60), (-5, -5)]
    fractions = annotated_fractions(area, grid(corners, (10.0, 10.0)))
    assert fractions.tolist() == pytest.approx([1.0, 1 - 30 / 100, 0.5, 0.25, 0.1, 0.0, 0.25])
    assert positive_patches(fractions).tolist() == [True, True, True, False, False, False, False]
    assert positive_patches(fractions, min_fraction=0.25).tolist() == [True, True, True, True, False, False, True]


def test_fractions_are_of_the_footprint_in_both_directions() -> None:
    fractions = annotated_fractions(box(0, 0, 10, 100), grid([(0, 0), (5, 0)], (8.0, 4.5)))
    assert fractions.tolist() == pytest.approx([1.0, 5 / 8])


def test_fractions_of_many_patches_on_a_ragged_outline_equal_those_of_single_patches() -> None:
    generator = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = 35 + 4 * np.sin(5 * angle) + generator.uniform(-2, 2, 400)
    outline = Polygon(np.stack([50 + radius * np.cos(angle), 50 + radius * np.sin(angle)], axis=1))
    area = outline.difference(box(45, 45, 60, 52))
    corners = [(x, y) for y in range(0, 100, 3) for x in range(0, 100, 3)]
    fractions = annotated_fractions(area, grid(corners, (3.5, 3.5)))
    for (x, y), fraction in zip(corners, fractions, strict=True):
        assert fraction == pytest.approx(area.intersection(box(x, y, x + 3.5, y + 3.5)).area / 3.5**2, abs=1e-12)
    assert np.count_nonzero((fractions > 0) & (fractions < 1)) > 100


def test_an_empty_annotation_covers_nothing() -> None:
    assert annotated_fractions(shapely.MultiPolygon(), grid([(0, 0)], (10.0, 10.0))).tolist() == [0.0]


def test_localisation_of_a_map_computed_by_hand() -> None:
    positive = np.array([True, False, True, False, False, False, False, False])
    scores = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.0, -1.0], np.float32)
    found = localisation(scores, positive)
    assert found.auprc == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.base_rate == 0.25
    assert found.lift == pytest.approx((1 / 1 + 2 / 3) / 2 * 4)
    assert found.auroc == pytest.approx(11 / 12)
    assert (found.n_patches, found.n_positive) == (8, 2)


@pytest.mark.parametrize("decimals", [1, 2, 7])
def test_localisation_equals_scikit_learn_with_and_without_ties(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    for n in [*range(2, 40), 3000]:
        positive = generator.random(n) < 0.4
        positive[:2] = True, False
        scores = generator.normal(size=n).astype(np.float32).round(decimals)
        found = localisation(scores, positive)
        assert found.auprc == pytest.approx(average_precision_score(positive, scores), abs=1e-14)
        assert found.auroc == pytest.approx(roc_auc_score(positive, scores), abs=1e-14)


def test_a_constant_map_has_the_base_rate_as_auprc() -> None:
    found = localisation(np.zeros(10, np.float32), np.arange(10) < 3)
    assert (found.auprc, found.lift, found.auroc) == pytest.approx((0.3, 1.0, 0.5))


def test_a_slide_that_is_annotated_as_a_whole_has_no_auroc() -> None:
    found = localisation(np.arange(4, dtype=np.float32), np.ones(4, bool))
    assert (found.auprc, found.lift) == (1.0, 1.0)
    assert math.isnan(found.auroc)
