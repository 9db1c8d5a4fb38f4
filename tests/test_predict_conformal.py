"""A prediction set contains the true class as often as guaranteed, and is not larger than necessary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_pipeline.predict.conformal import prediction_set
from wsi_pipeline.train.nonconformity import nonconformity
from wsi_pipeline.types import Float64, Int64

SPLITS = 1000


def slides(rng: np.random.Generator, count: int, classes: int, skill: float) -> tuple[Float64, Int64]:
    """Probabilities (n, C) of an over-confident model, and the truth (n,)."""
    truth = rng.integers(0, classes, count)
    logits = rng.normal(0, 3, (count, classes))
    logits[np.arange(count), truth] += skill
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True), truth


def scores_of(probabilities: Float64, truth: Int64) -> list[float]:
    return [float(s) for s in nonconformity(probabilities)[np.arange(len(truth)), truth]]


def by_definition(probabilities: Float64, calibrations: list[list[float]], alpha: float) -> list[bool]:
    inside = []
    for c in range(probabilities.shape[1]):
        no_better, total = 1, 1
        for p, calibration in zip(probabilities, calibrations, strict=True):
            for s in calibration:
                total += 1
                no_better += s >= round(1 - p[c], 6)
        inside.append(no_better / total > alpha)
    return inside


@pytest.mark.parametrize(("alpha", "size", "classes"), [(0.1, 19, 2), (0.2, 30, 3), (0.05, 50, 5)])
def test_the_true_class_is_in_the_set_as_often_as_guaranteed(alpha: float, size: int, classes: int) -> None:
    """Over 1,000 splits; without ties the exact coverage is known: 1 - floor(alpha (n + 1)) / (n + 1)."""
    rng, covered = np.random.default_rng(size), 0
    for _ in range(SPLITS):
        probabilities, truth = slides(rng, size + 1, classes, skill=2)
        calibration = scores_of(probabilities[1:], truth[1:])
        covered += bool(prediction_set(probabilities[0], [calibration], alpha)[truth[0]])
    expected = 1 - math.floor(alpha * (size + 1) + 1e-9) / (size + 1)
    error = math.sqrt(expected * (1 - expected) / SPLITS)
    assert expected >= 1 - alpha
    assert expected - 3 * error <= covered / SPLITS <= expected + 3 * error


def test_pooled_folds_reach_the_same_coverage() -> None:
    """Five different members, each with its own calibration slides: pooled p-values cover 1 - alpha as well."""
    alpha, covered = 0.1, 0
    rng = np.random.default_rng(7)
    for _ in range(SPLITS):
        calibrations, of_members, truth = [], [], int(rng.integers(0, 3))
        evidence = rng.normal(0, 2, 3) + 2.5 * np.eye(3)[truth]
        for _member in range(5):
            noise = rng.normal(0, 0.5, 3)  # a member's own bias
            label = rng.integers(0, 3, 12)
            logits = rng.normal(0, 2, (12, 3)) + 2.5 * np.eye(3)[label] + noise
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            calibrations.append(scores_of(p, label))
            of_members.append(np.exp(evidence + noise) / np.exp(evidence + noise).sum())
        covered += bool(prediction_set(np.stack(of_members), calibrations, alpha)[truth])
    assert covered / SPLITS >= 1 - alpha - 3 * math.sqrt(alpha * (1 - alpha) / SPLITS)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_prediction_sets_equal_the_definition(members: int) -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        probabilities = rng.dirichlet(np.full(4, 0.5), members).round(1 + seed % 3)
        calibrations = [rng.random(rng.integers(0, 30)).round(1 + seed % 3).tolist() for _ in range(members)]
        alpha = float(rng.choice([0.05, 0.1, 0.25, 0.5]))
        assert prediction_set(probabilities, calibrations, alpha).tolist() == by_definition(
            probabilities, calibrations, alpha
        )


def test_at_alpha_one_tenth_nine_calibration_slides_are_just_enough() -> None:
    calibration = [0.1] * 9
    assert prediction_set(np.array([0.95, 0.05]), [calibration], 0.1).tolist() == [True, False]
    assert prediction_set(np.array([0.95, 0.05]), [calibration[1:]], 0.1).tolist() == [True, True]


def test_without_calibration_no_class_is_excluded() -> None:
    assert prediction_set(np.array([1.0, 0.0]), [[]], 0.1).tolist() == [True, True]
    assert prediction_set(np.array([[1.0, 0.0], [1.0, 0.0]]), [[], []], 0.5).tolist() == [True, True]


def test_a_set_shrinks_as_alpha_grows() -> None:
    rng = np.random.default_rng(3)
    p, truth = slides(rng, 60, 4, skill=2)
    sizes = [int(prediction_set(p[0], [scores_of(p[1:], truth[1:])], a).sum()) for a in (0.02, 0.1, 0.3, 0.6, 0.95)]
    assert sizes == sorted(sizes, reverse=True)


def test_scores_that_differ_beyond_six_decimals_are_equal() -> None:
    """Scores of 1e-9 are stored as 0 in the card; a new slide at 2e-9 must not conform less than all of them."""
    p = np.array([[1 - 1e-9, 1e-9]] * 20)
    calibration = scores_of(p, np.zeros(20, np.int64))
    assert calibration == [0.0] * 20
    assert prediction_set(np.array([1 - 2e-9, 2e-9]), [calibration], 0.1).tolist() == [True, False]
