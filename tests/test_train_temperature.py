"""The temperature maximises the likelihood; it changes the confidence, never the predicted class."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from wsi_pipeline.train.temperature import HIGHEST, fit_temperature
from wsi_pipeline.types import Float64, Int64


def drawn(seed: int, count: int, classes: int, spread: float = 2.0) -> tuple[Float64, Int64]:
    """Perfectly calibrated logits, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (count, classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(1)


def loss(logits: Float64, truth: Int64, temperature: float) -> float:
    total = 0.0
    for z, label in zip(logits, truth, strict=True):
        total -= float(log_softmax(z / temperature)[label])
    return total / len(truth)


def multilabel_loss(logits: Float64, truth: Float64, temperature: float) -> float:
    p = expit(logits / temperature)
    return float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum(1).mean())


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_of_a_softmax_is_recovered(true: float) -> None:
    logits, truth = drawn(1, 20_000, 3)
    assert fit_temperature(logits * true, truth) == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_of_sigmoids_is_recovered(true: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (8_000, 3))
    truth = (rng.random(logits.shape) < expit(logits)).astype(np.float64)
    assert fit_temperature(logits * true, truth) == pytest.approx(true, rel=0.03)


def test_no_other_temperature_is_better_and_the_predicted_class_stays() -> None:
    for seed in range(30):
        logits, truth = drawn(seed, 40, 2 + seed % 3)
        logits *= 4  # over-confident
        fitted = fit_temperature(logits, truth)
        best = loss(logits, truth, fitted)
        assert fitted > 1
        assert best < loss(logits, truth, 1.0)
        assert all(best <= loss(logits, truth, t) + 1e-12 for t in fitted * np.geomspace(0.1, 10, 41))
        assert (softmax(logits / fitted, axis=1).argmax(1) == logits.argmax(1)).all()


def test_no_other_temperature_of_sigmoids_is_better() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 6, (40, 3))
        truth = (rng.random(logits.shape) < expit(logits / 3)).astype(np.float64)
        fitted = fit_temperature(logits, truth)
        best = multilabel_loss(logits, truth, fitted)
        assert all(best <= multilabel_loss(logits, truth, t) + 1e-12 for t in fitted * np.geomspace(0.5, 2, 41))


def test_a_softmax_of_two_classes_equals_a_sigmoid_of_their_difference() -> None:
    logits, truth = drawn(5, 200, 2)
    difference = logits[:, 1:] - logits[:, :1]
    assert fit_temperature(logits, truth) == pytest.approx(fit_temperature(difference, truth[:, None].astype(float)))


@pytest.mark.parametrize(
    ("logits", "truth"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64)),
        (np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([1, 1])),  # one class
        (np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([1, 0])),  # all correct: the likelihood grows as T goes to 0
        (np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([1, 0])),  # the likelihood does not depend on T
        (np.array([[np.inf, 1.0], [1.0, 2.0]]), np.array([1, 0])),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.array([[2.0, -1.0], [-3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])),  # all correct
        (np.array([[2.0, -1.0], [-3.0, 4.0]]), np.zeros((2, 2))),  # no positive
    ],
)
def test_bags_that_do_not_determine_the_temperature_leave_it_at_one(logits: Float64, truth: Int64) -> None:
    assert fit_temperature(logits, truth) == 1.0


def test_logits_worse_than_chance_get_the_highest_temperature() -> None:
    assert fit_temperature(np.array([[5.0, 0.0], [0.0, 5.0], [0.0, 1.0]]), np.array([1, 0, 1])) == HIGHEST


def test_huge_logits_do_not_overflow() -> None:
    logits, truth = drawn(6, 100, 3)
    assert fit_temperature(logits * 1e3, truth) == HIGHEST
    assert 20 < fit_temperature(logits * 40, truth) < 80


def test_adding_a_constant_to_the_logits_of_a_bag_changes_nothing() -> None:
    logits, truth = drawn(8, 100, 3)
    shifted = logits + np.arange(100)[:, None]
    assert fit_temperature(shifted, truth) == pytest.approx(fit_temperature(logits, truth))
