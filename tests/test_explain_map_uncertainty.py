"""Uncertainty of a patch, each measure against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from wsi_pipeline.explain.summary_maps.map_uncertainty import (
    NEAREST,
    entropy,
    reference_distance,
    reference_of,
    sign_agreement,
    spread,
)


def test_members_that_agree_have_no_spread() -> None:
    assert spread(np.array([[1.0, 2.0], [1.0, 4.0]])).tolist() == [0.0, pytest.approx(np.sqrt(2))]
    scores = np.array([[1.0, -1.0, 0.5, 0.0], [2.0, 3.0, -0.1, 0.0], [0.1, -9.0, 0.0, 0.0]])
    assert sign_agreement(scores).tolist() == pytest.approx([1, 1 / 3, 0, 0])


def test_equal_probabilities_have_entropy_one_and_a_certain_class_zero() -> None:
    one = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    other = np.array([[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]])  # the members are certain of different classes
    assert entropy(np.stack([one, other])).tolist() == pytest.approx([1, 0, 1])
    assert entropy(np.full((2, 4, 3), 1 / 3)).tolist() == pytest.approx([1] * 4)
    p = 0.2
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert entropy(np.array([[[p, 1 - p]]])).tolist() == pytest.approx([bits])


def test_the_distance_is_that_of_a_plain_neighbour_search() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(3, [1, 5, 0.2, 0], (200, 4))  # the last feature never changes
    patches = np.concatenate([generator.normal(3, [1, 5, 0.2, 0], (30, 4)), np.full((1, 4), 40.0)])
    found = reference_distance(torch.from_numpy(patches), reference_of(torch.from_numpy(reference)))
    deviation = reference.std(0, ddof=1)
    scale = np.where(deviation > 0, deviation, 1)
    search = NearestNeighbors().fit((reference - reference.mean(0)) / scale)
    typical = np.median(search.kneighbors(n_neighbors=NEAREST)[0].mean(1))
    distances = search.kneighbors((patches - reference.mean(0)) / scale, NEAREST)[0].mean(1)
    np.testing.assert_allclose(found, distances / typical, rtol=1e-4)
    assert 0.5 < np.median(found[:30]) < 2
    assert found[30] > 20


def test_identical_training_patches_have_distance_zero() -> None:
    same = torch.ones(20, 3)
    assert reference_distance(same, reference_of(same)).tolist() == [0.0] * 20
