"""Total uncertainty is the members' own uncertainty plus the disagreement between them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_pipeline.predict.uncertainty import entropies
from wsi_pipeline.types import Float64


def simplex(seed: int, members: int, classes: int) -> Float64:
    """Random members; every third probability is 0, and sharp distributions are as frequent as flat ones."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 10.0 ** rng.uniform(-2, 2)), members)
    p[rng.random(p.shape) < 1 / 3] = 0
    p[:, 0] += 1 - p.sum(1)
    return p


def mutual_information(joint: list[list[float]]) -> float:
    """By definition, in nats, from the joint distribution of member (row) and class (column)."""
    rows, columns = [sum(row) for row in joint], [sum(column) for column in zip(*joint, strict=True)]
    found = 0.0
    for i, row in enumerate(joint):
        for j, p in enumerate(row):
            if p > 0:
                found += p * math.log(p / (rows[i] * columns[j]))
    return found


def test_two_members_certain_of_different_classes_have_only_epistemic_uncertainty() -> None:
    total, aleatoric, epistemic = entropies(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert (total, aleatoric, epistemic) == pytest.approx((math.log(2), 0.0, math.log(2)))


def test_two_equally_uncertain_members_have_only_aleatoric_uncertainty() -> None:
    total, aleatoric, epistemic = entropies(np.array([[0.5, 0.5], [0.5, 0.5]]))
    assert (total, aleatoric) == pytest.approx((math.log(2), math.log(2)))
    assert epistemic == 0


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("members", [1, 3, 7])
def test_members_that_agree_have_an_epistemic_uncertainty_of_exactly_zero(members: int, multilabel: bool) -> None:
    for seed in range(50):
        same = np.repeat(simplex(seed, 1, 5), members, axis=0)
        assert entropies(same, multilabel=multilabel)[2] == 0


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_epistemic_is_the_mutual_information_of_member_and_class(classes: int) -> None:
    for seed in range(100):
        p = simplex(seed, 1 + seed % 6, classes)
        total, aleatoric, epistemic = entropies(p)
        assert total - aleatoric == pytest.approx(epistemic, abs=1e-12)
        assert epistemic >= 0
        assert epistemic == pytest.approx(mutual_information((p / len(p)).tolist()), abs=1e-12)


def test_for_multilabel_the_mutual_informations_of_the_labels_add_up() -> None:
    for seed in range(100):
        p = np.random.default_rng(seed).random((1 + seed % 6, 4)).round(seed % 3)
        total, aleatoric, epistemic = entropies(p, multilabel=True)
        of_labels = [mutual_information([[q / len(p), (1 - q) / len(p)] for q in column]) for column in p.T]
        assert epistemic == pytest.approx(sum(of_labels), abs=1e-12)
        assert total == pytest.approx(sum(entropies(np.stack([c, 1 - c], axis=1))[0] for c in p.T), abs=1e-12)
        assert aleatoric == pytest.approx(total - epistemic, abs=1e-12)


def test_certainty_gives_zero_for_any_number_of_classes() -> None:
    assert entropies(np.array([[0.0, 0.0, 1.0]])) == (0.0, 0.0, 0.0)
    assert entropies(np.array([[0.0, 1.0, 1.0]]), multilabel=True) == (0.0, 0.0, 0.0)
