"""Several maps combined: ranks, consensus, agreement and correlation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from wsi_pipeline.explain.summary_maps.map_arithmetic import (
    agreement,
    consensus,
    faithful_weights,
    rank_maps,
    ranks,
    spearman,
)

MAP = np.array([0.5, -2.0, 0.0, 3.0, -0.1])


def test_unsigned_ranks_go_from_0_to_1_and_ties_have_their_mean() -> None:
    assert ranks(np.array([10.0, -5.0, 7.0, 7.0, 99.0]), signed=False).tolist() == [0.75, 0.0, 0.375, 0.375, 1.0]


def test_signed_ranks_keep_the_sign_and_are_symmetric_about_0() -> None:
    assert ranks(MAP, signed=True).tolist() == [0.6, -0.8, 0.0, 1.0, -0.4]
    np.testing.assert_array_equal(ranks(-MAP, signed=True), -ranks(MAP, signed=True))


def test_a_constant_map_has_equal_ranks() -> None:
    assert ranks(np.full(4, 7.0), signed=False).tolist() == [0.5] * 4
    assert ranks(np.array([3.0]), signed=False).tolist() == [0.5]
    assert ranks(np.zeros(3), signed=True).tolist() == [0.0] * 3


@pytest.mark.parametrize("signed", [True, False])
def test_ranks_do_not_depend_on_the_unit(signed: bool) -> None:
    stretched = np.sign(MAP) * np.abs(MAP) ** 3 * 1e-6
    np.testing.assert_array_equal(ranks(stretched, signed), ranks(MAP, signed))


@pytest.mark.parametrize("signed", [True, False])
def test_consensus_of_identical_maps_is_that_map_and_they_agree_fully(signed: bool) -> None:
    maps, signs = [MAP, 2 * MAP, MAP], [signed] * 3
    np.testing.assert_allclose(consensus(maps, signs), ranks(MAP, signed))
    np.testing.assert_allclose(consensus(maps, signs, [0.7, 0.2, 0.1]), ranks(MAP, signed))
    np.testing.assert_allclose(agreement(maps, signs), 1.0)


def test_consensus_is_the_weighted_mean_of_ranks() -> None:
    up, down = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    assert consensus([up, down], [False, False]).tolist() == [0.5, 0.5, 0.5]
    np.testing.assert_allclose(consensus([up, down], [False, False], [3, 1]), [0.25, 0.5, 0.75])


def test_combined_with_an_unsigned_map_a_signed_one_keeps_only_its_order() -> None:
    found = rank_maps([MAP, np.arange(5.0)], [True, False])
    np.testing.assert_allclose(found, [[0.75, 0.0, 0.5, 1.0, 0.25], [0.0, 0.25, 0.5, 0.75, 1.0]])


def test_agreement_is_0_where_half_of_the_maps_are_the_opposite_of_the_others() -> None:
    maps = [np.array([1.0, -2.0]), np.array([-1.0, 2.0])]
    np.testing.assert_allclose(agreement(maps, [True, True]), [0.5, 0.0])  # ranks 1/2 and -1/2; -1 and 1
    np.testing.assert_allclose(agreement(maps, [False, False]), [0.0, 0.0])  # ranks 0 and 1


def test_methods_are_weighted_by_their_distance_below_random() -> None:
    assert faithful_weights({"a": 0.1, "b": 0.4, "c": 0.9}, random=0.7) == pytest.approx(
        {"a": 2 / 3, "b": 1 / 3, "c": 0}
    )
    assert faithful_weights({"a": 0.8, "b": 0.9}, random=0.7) == {"a": 0.5, "b": 0.5}


def test_the_matrix_holds_spearmans_correlation_of_each_pair() -> None:
    maps = np.random.default_rng(0).integers(0, 5, (3, 40)).astype(float)  # with ties
    found = spearman(list(maps))
    for i in range(3):
        for j in range(3):
            assert found[i, j] == pytest.approx(spearmanr(maps[i], maps[j]).statistic)
    assert found[0, 0] == pytest.approx(1.0)


def test_a_constant_map_has_no_correlation() -> None:
    found = spearman([np.ones(4), np.arange(4.0)])
    assert np.isnan(found[0]).all()
    assert found[1, 1] == pytest.approx(1.0)
