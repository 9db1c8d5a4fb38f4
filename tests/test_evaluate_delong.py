"""DeLong's variance against its definition as loops over all pairs, and its statistical properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsi_pipeline.evaluate.delong import Areas, areas, difference, interval
from wsi_pipeline.types import Bool, Float64


def wins(x: float, y: float) -> float:
    return 1.0 if x > y else 0.5 if x == y else 0.0


def delong_by_pairs(positive: Bool, scores: Float64) -> tuple[list[float], Float64]:
    """DeLong, DeLong and Clarke-Pearson 1988: areas and covariance, O(mn), one row per patient."""
    values, v10, v01 = [], [], []
    for score in scores:
        high, low = score[positive], score[~positive]
        v10.append([sum(wins(x, y) for y in low) / len(low) for x in high])
        v01.append([sum(wins(x, y) for x in high) / len(high) for y in low])
        values.append(sum(v10[-1]) / len(high))
    count = len(scores)
    covariance = np.zeros((count, count))
    for r in range(count):
        for s in range(count):
            for part in (v10, v01):
                n = len(part[r])
                products = [(a - values[r]) * (b - values[s]) for a, b in zip(part[r], part[s], strict=True)]
                covariance[r, s] += sum(products) / (n - 1) / n
    return values, covariance


def obuchowski_by_loops(positive: Bool, score: Float64, patients: list[str]) -> float:
    """Obuchowski 1997: the variance of one area of clustered rows."""
    high, low = score[positive], score[~positive]
    m, n = len(high), len(low)
    area = sum(wins(x, y) for x in high for y in low) / (m * n)
    names = sorted(set(patients))
    diseased, healthy = [], []
    for name in names:
        own = [i for i, patient in enumerate(patients) if patient == name]
        diseased.append(sum(sum(wins(score[i], y) for y in low) / n - area for i in own if positive[i]))
        healthy.append(sum(sum(wins(x, score[i]) for x in high) / m - area for i in own if not positive[i]))
    i10 = sum(any(positive[i] for i, p in enumerate(patients) if p == name) for name in names)
    i01 = sum(any(not positive[i] for i, p in enumerate(patients) if p == name) for name in names)
    s10 = i10 / ((i10 - 1) * m) * sum(d * d for d in diseased)
    s01 = i01 / ((i01 - 1) * n) * sum(h * h for h in healthy)
    s11 = len(names) / (len(names) - 1) * sum(d * h for d, h in zip(diseased, healthy, strict=True))
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def one_per_patient(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


@pytest.mark.parametrize(("n", "levels"), [(4, 100), (30, 100), (41, 5), (200, 12)])
def test_areas_and_covariance_equal_the_definition_with_and_without_ties(n: int, levels: int) -> None:
    generator = np.random.default_rng(n)
    positive = np.arange(n) < max(2, n // 3)
    scores = generator.integers(0, levels, (3, n)) / levels
    found = areas(positive, scores, one_per_patient(n))
    values, covariance = delong_by_pairs(positive, scores)
    assert found.value.tolist() == pytest.approx(values)
    assert found.value.tolist() == pytest.approx([roc_auc_score(positive, score) for score in scores])
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10, atol=1e-15)


def test_the_variance_of_four_rows_computed_by_hand() -> None:
    """Positives .8 and .3, negatives .5 and .1: three of four pairs are in order."""
    found = areas(np.array([True, True, False, False]), np.array([[0.8, 0.3, 0.5, 0.1]]), one_per_patient(4))
    assert found.value[0] == 0.75
    # Components 1 and 1/2 of the positives, 1/2 and 1 of the negatives: both have variance 1/8, over 2 rows.
    assert found.covariance[0, 0] == pytest.approx(1 / 8 / 2 + 1 / 8 / 2)


def test_rows_of_one_patient_form_a_cluster() -> None:
    generator = np.random.default_rng(5)
    patients = [f"p{i % 17}" for i in range(60)]
    positive = generator.random(60) < 0.4
    score = generator.integers(0, 15, 60) + 4.0 * positive
    found = areas(positive, score[None], patients)
    assert found.covariance[0, 0] == pytest.approx(obuchowski_by_loops(positive, score, patients))


def test_duplicating_every_slide_does_not_reduce_the_variance() -> None:
    generator = np.random.default_rng(1)
    positive, score = np.arange(400) < 200, generator.standard_normal(400)
    score[positive] += 0.7
    once = areas(positive, score[None], one_per_patient(400)).covariance[0, 0]
    twice = areas(np.tile(positive, 2), np.tile(score, 2)[None], one_per_patient(400) * 2).covariance[0, 0]
    unclustered = areas(np.tile(positive, 2), np.tile(score, 2)[None], one_per_patient(800)).covariance[0, 0]
    assert twice == pytest.approx(once)
    assert unclustered == pytest.approx(once / 2, rel=0.02)


def test_the_interval_covers_the_true_area_about_95_times_in_100() -> None:
    generator, covered = np.random.default_rng(0), 0
    truth = 0.5 * math.erfc(-1.0 / math.sqrt(2) / math.sqrt(2))  # for normals one standard deviation apart
    positive, names = np.arange(80) < 40, one_per_patient(80)
    for _ in range(400):
        low, high = interval(areas(positive, generator.standard_normal((1, 80)) + positive, names))
        covered += low <= truth <= high
    assert 0.92 < covered / 400 < 0.98


def test_without_a_difference_p_is_uniform() -> None:
    generator, positive = np.random.default_rng(3), np.arange(60) < 30
    common = generator.standard_normal((400, 1, 60)) + positive
    found = [
        difference(areas(positive, c + 0.7 * generator.standard_normal((2, 60)), one_per_patient(60))).p for c in common
    ]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_interval_and_p_value_of_a_difference_are_those_of_a_normal_distribution() -> None:
    generator, positive = np.random.default_rng(4), np.arange(50) < 20
    scores = generator.standard_normal((2, 50)) + positive * np.array([[0.5], [1.5]])
    values, covariance = delong_by_pairs(positive, scores)
    deviation = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = difference(areas(positive, scores, one_per_patient(50)))
    gap = values[1] - values[0]
    assert found.value == pytest.approx(gap)
    assert (found.low, found.high) == pytest.approx((gap - 1.959964 * deviation, gap + 1.959964 * deviation))
    assert found.p == pytest.approx(2 * (1 - 0.5 * (1 + math.erf(gap / deviation / math.sqrt(2)))))


def test_scores_with_the_same_ranking_do_not_differ() -> None:
    score = np.random.default_rng(0).random(20)
    found = difference(areas(np.arange(20) < 9, np.array([score, score**3]), one_per_patient(20)))
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_without_variance_there_is_no_interval() -> None:
    positive = np.array([True, True, False, False])
    perfect = areas(positive, np.array([[4.0, 3.0, 2.0, 1.0]]), one_per_patient(4))
    assert perfect.value[0] == 1.0
    assert all(math.isnan(end) for end in interval(perfect))
    one_patient = areas(positive, np.array([[4.0, 2.0, 3.0, 1.0]]), ["a", "a", "b", "c"])
    assert all(math.isnan(end) for end in interval(one_patient))
    both = Areas(np.array([1.0, 0.5]), np.zeros((2, 2)))
    assert math.isnan(difference(both).p)


def test_intervals_are_clipped_at_one() -> None:
    positive = np.arange(20) < 10
    score = positive.astype(np.float64) - 2.0 * (np.arange(20) == 9)
    low, high = interval(areas(positive, score[None], one_per_patient(20)))
    assert 0.6 < low < 0.9
    assert high == 1.0
