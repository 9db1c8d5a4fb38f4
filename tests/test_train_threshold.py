"""The threshold has the highest balanced accuracy; ties go to the candidate nearest to one half."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsi_pipeline.train.threshold import best_threshold

slides = st.lists(st.tuples(st.booleans(), st.integers(0, 100).map(lambda n: n / 100)), min_size=1, max_size=12)


def balanced_accuracy(truth: list[bool], scores: list[float], threshold: float) -> float:
    """Mean of sensitivity and specificity, slide by slide."""
    true_positives = sum(1 for t, s in zip(truth, scores, strict=True) if t and s >= threshold)
    true_negatives = sum(1 for t, s in zip(truth, scores, strict=True) if not t and s < threshold)
    return (true_positives / sum(truth) + true_negatives / (len(truth) - sum(truth))) / 2


@given(slides)
@example([(False, 1.0), (True, 0.0)])
def test_no_other_threshold_is_better_and_no_equal_midpoint_is_nearer_to_one_half(
    drawn: list[tuple[bool, float]],
) -> None:
    truth, scores = [t for t, _ in drawn], [s for _, s in drawn]
    selected = best_threshold(truth, scores)
    if all(truth) or not any(truth):
        assert selected == 0.5
        return
    best = balanced_accuracy(truth, scores, selected)
    for step in range(1, 1001):  # not 0, where every slide is positive
        assert balanced_accuracy(truth, scores, step / 1000) <= best + 1e-12
    values = sorted({0.0, 1.0, *scores})
    for low, high in pairwise(values):
        if balanced_accuracy(truth, scores, (low + high) / 2) > best - 1e-12:
            assert abs((low + high) / 2 - 0.5) >= abs(selected - 0.5)


@pytest.mark.parametrize(
    ("negatives", "positives", "threshold"),
    [
        ([0.1, 0.2], [0.8, 0.9], 0.5),  # the middle of the gap
        ([0.1], [0.3], 0.2),
        ([0.6, 0.7], [0.65, 0.9], 0.625),  # 0.625 and 0.8 tie at 3/4; 0.625 is nearer to 0.5
        ([0.4], [0.4], 0.7),  # inseparable: 0.2 and 0.7 tie, 0.7 is nearer
    ],
)
def test_thresholds_computed_by_hand(negatives: list[float], positives: list[float], threshold: float) -> None:
    truth = [False] * len(negatives) + [True] * len(positives)
    assert best_threshold(truth, negatives + positives) == pytest.approx(threshold)
