"""Consensus and agreement of several maps of one slide, on numpy arrays.

Methods differ in unit and scale, but an order has the same meaning in all of them, so maps are compared and combined
by ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from ...types import Float64


def ranks(scores: np.ndarray, signed: bool) -> Float64:
    """Turn scores into ranks; ties have their mean rank.

    Parameters
    ----------
    scores : array, (N,)
    signed : bool
        False: from 0 for the lowest to 1 for the highest; 1/2 for a constant map. True: the rank of the magnitude, up
        to 1, with the score's sign, so that 0 stays 0 and ``ranks(-s) == -ranks(s)``.

    Returns
    -------
    float64 array, (N,)
    """
    patches = len(scores)
    if signed:
        found: Float64 = np.sign(scores) * rankdata(np.abs(scores)) / patches
        return found
    return (rankdata(scores) - 1) / (patches - 1) if patches > 1 else np.full(1, 0.5)


def rank_maps(maps: Sequence[np.ndarray], signed: Sequence[bool]) -> Float64:
    """Ranks of M maps (N,), (M, N): signed if all maps are signed, else all from 0 to 1.

    An unsigned map cannot express evidence against the class, so combined with one a signed map keeps only its order.
    """
    return np.stack([ranks(np.asarray(scores), all(signed)) for scores in maps])


def consensus(maps: Sequence[np.ndarray], signed: Sequence[bool], weights: Sequence[float] | None = None) -> Float64:
    """Weighted mean (N,) of the maps' ranks, by default with equal weights; for identical maps, that map's ranks."""
    joined: Float64 = np.average(rank_maps(maps, signed), axis=0, weights=weights)
    return joined


def agreement(maps: Sequence[np.ndarray], signed: Sequence[bool]) -> Float64:
    """Agreement of the maps on each patch, (N,): 1 - std / h of the maps' ranks, h half the range of ranks.

    1: all maps give it the same rank; 0: half of them rank it highest, the others lowest.
    """
    half = 1.0 if all(signed) else 0.5
    agreed: Float64 = 1 - rank_maps(maps, signed).std(axis=0) / half
    return agreed


def faithful_weights(aupc: Mapping[str, float], random: float) -> dict[str, float]:
    """Weights of methods, summing to 1, in proportion to how far each AUPC is below that of ``random`` scores.

    A method that is not better than random has weight 0; if none is better, all weights are equal.
    """
    margins = {name: max(random - area, 0.0) for name, area in aupc.items()}
    total = sum(margins.values())
    return {name: margin / total if total else 1 / len(margins) for name, margin in margins.items()}


def spearman(maps: Sequence[np.ndarray]) -> Float64:
    """Spearman correlation of each pair of M maps (N,), (M, M); NaN where one of the pair is constant."""
    ranked = rankdata(np.stack([np.asarray(scores, np.float64) for scores in maps]), axis=1)  # (M, N)
    centred = ranked - ranked.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1))
    products = np.outer(length, length)
    found: Float64 = np.full(products.shape, np.nan)
    np.divide(centred @ centred.T, products, out=found, where=products > 0)
    return found
