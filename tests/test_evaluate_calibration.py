"""Calibration and selective prediction against their definitions, written as loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from wsi_pipeline.evaluate.calibration import (
    brier,
    calibration_error,
    reliability,
    risk_coverage,
    risk_coverage_area,
    set_metrics,
    top_label,
)
from wsi_pipeline.types import Bool, Float64


def error_by_loops(confidence: Float64, correct: Bool, bins: int) -> float:
    """Guo et al. 2017, equations 2 and 3."""
    total = 0.0
    for b in range(1, bins + 1):
        own = [i for i, c in enumerate(confidence) if (b - 1) / bins < c <= b / bins or (b == 1 and c == 0)]
        if own:
            accuracy = sum(bool(correct[i]) for i in own) / len(own)
            mean = sum(float(confidence[i]) for i in own) / len(own)
            total += len(own) / len(confidence) * abs(accuracy - mean)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_calibration_error_equals_the_definition(bins: int) -> None:
    generator = np.random.default_rng(bins)
    confidence = np.append(generator.random(200), [0.0, 1.0, 1 / 7, 2 / 15, 0.6])
    correct = generator.random(205) < confidence**2
    found = calibration_error(reliability(confidence, correct, bins))
    assert found == pytest.approx(error_by_loops(confidence, correct, bins))


def test_the_calibration_error_of_four_slides_computed_by_hand() -> None:
    found = reliability(np.array([0.55, 0.65, 0.9, 1.0]), np.array([True, False, True, True]), 5)
    assert found.counts.tolist() == [1, 1, 2]  # (.4, .6], (.6, .8], (.8, 1]
    assert found.confidence.tolist() == pytest.approx([0.55, 0.65, 0.95])
    assert found.accuracy.tolist() == [1.0, 0.0, 1.0]
    assert calibration_error(found) == pytest.approx((0.45 + 0.65 + 2 * 0.05) / 4)


def test_calibrated_confidence_has_almost_no_error_and_overconfidence_has_one() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 20_000)
    correct = generator.random(20_000) < confidence
    assert calibration_error(reliability(confidence, correct, 15)) < 0.01
    assert calibration_error(reliability((confidence + 1) / 2, correct, 15)) == pytest.approx(0.125, abs=0.01)


def test_confidence_is_that_of_the_most_probable_class() -> None:
    confidence, correct = top_label(np.array([0, 2]), np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]))
    assert confidence.tolist() == [0.5, 0.6]
    assert correct.tolist() == [True, False]


def test_the_brier_score_is_the_squared_distance() -> None:
    target, predicted = np.array([[1, 0, 0], [0, 0, 1]]), np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    assert brier(target, predicted) == pytest.approx((0.25 + 0.09 + 0.04 + 2) / 2)
    assert brier(target, target) == 0


def area_by_loops(confidence: list[float], correct: list[bool]) -> float:
    """Mean over k of the error rate among the k most confident, over every order of equally confident rows."""
    areas = []
    for order in itertools.permutations(range(len(correct))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            risks = [sum(not correct[i] for i in order[:k]) / k for k in range(1, len(correct) + 1)]
            areas.append(sum(risks) / len(risks))
    return sum(areas) / len(areas)


@pytest.mark.parametrize("levels", [1, 2, 3, 50])
def test_the_risk_coverage_area_is_the_mean_over_all_orders_of_ties(levels: int) -> None:
    generator = np.random.default_rng(levels)
    for _ in range(5):
        confidence, correct = generator.integers(0, levels, 6) / levels, generator.random(6) < 0.6
        expected = area_by_loops(confidence.tolist(), correct.tolist())
        assert risk_coverage_area(confidence, correct) == pytest.approx(expected)


def test_the_risk_coverage_curve_of_four_slides_computed_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.6, 0.9, 0.7, 0.8]), np.array([False, True, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])


def test_confidence_that_ranks_errors_last_has_the_smallest_area_and_the_risk_at_full_coverage_is_the_error_rate() -> (
    None
):
    correct = np.arange(10) >= 3
    informative, misleading = np.arange(10) / 10, -np.arange(10) / 10
    constant = np.full(10, 0.5)
    found = [risk_coverage_area(c, correct) for c in (informative, constant, misleading)]
    assert found == sorted(found)
    assert found[1] == pytest.approx(0.3)
    assert risk_coverage(informative, correct)[1][-1] == pytest.approx(0.3)


def test_temperature_does_not_change_the_order_within_two_classes() -> None:
    generator = np.random.default_rng(0)
    logits, truth = 3 * generator.standard_normal(100), generator.integers(0, 2, 100)
    areas = []
    for temperature in (1.0, 4.0):
        positive = 1 / (1 + np.exp(-logits / temperature))
        areas.append(risk_coverage_area(*top_label(truth, np.stack([1 - positive, positive], axis=1))))
    assert areas[0] == pytest.approx(areas[1])


def test_set_metrics_computed_by_hand() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]], bool)
    truth, predicted = np.array([0, 1, 2, 1, 2]), np.array([0, 0, 2, 2, 2])
    found = set_metrics(sets, truth, predicted)
    assert found["coverage"] == 3 / 5
    assert found["set_size"] == (1 + 2 + 0 + 1 + 3) / 5
    assert found["abstained"] == pytest.approx(3 / 5)
    assert found["accuracy_not_abstained"] == 1 / 2


def test_a_model_that_always_abstains_has_no_accuracy() -> None:
    found = set_metrics(np.ones((2, 2), bool), np.array([0, 1]), np.array([0, 1]))
    assert (found["abstained"], found["coverage"]) == (1.0, 1.0)
    assert math.isnan(found["accuracy_not_abstained"])
