"""Several maps of one slide as one: what they agree on, and how much. Numbers only, no torch.

Methods differ in unit and in scale, not in what an order means: so maps are compared and joined by their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from ...types import Float64


def ranks(scores: np.ndarray, signed: bool) -> Float64:
    """Scores (N,) as ranks (N,), equals sharing their mean rank.

    Unsigned: 0 for the lowest to 1 for the highest; of a constant map all 1/2. Signed: the rank of the magnitude, up
    to 1, with the score's sign, so that 0 stays 0 and ``ranks(-s) == -ranks(s)``.
    """
    patches = len(scores)
    if signed:
        found: Float64 = np.sign(scores) * rankdata(np.abs(scores)) / patches
        return found
    return (rankdata(scores) - 1) / (patches - 1) if patches > 1 else np.full(1, 0.5)


def rank_maps(maps: Sequence[np.ndarray], signed: Sequence[bool]) -> Float64:
    """Each of M maps (N,) as ranks, (M, N): signed where all maps are, else all from 0 to 1.

    A map without a sign says nothing against the class, so beside one a signed map keeps its order only.
    """
    return np.stack([ranks(np.asarray(scores), all(signed)) for scores in maps])


def consensus(maps: Sequence[np.ndarray], signed: Sequence[bool], weights: Sequence[float] | None = None) -> Float64:
    """Weighted mean (N,) of the maps' ranks; equal weights by default. Of identical maps: that map's ranks."""
    joined: Float64 = np.average(rank_maps(maps, signed), axis=0, weights=weights)
    return joined


def agreement(maps: Sequence[np.ndarray], signed: Sequence[bool]) -> Float64:
    """How much the maps agree on each patch, (N,): 1 - std / h over the maps' ranks, h half the ranks' range.

    1: all give it the same rank; 0: half of them rank it highest, half lowest.
    """
    half = 1.0 if all(signed) else 0.5
    agreed: Float64 = 1 - rank_maps(maps, signed).std(axis=0) / half
    return agreed


def faithful_weights(aupc: Mapping[str, float], random: float) -> dict[str, float]:
    """Weights of methods, summing to 1: how far the patch-flipping area of each lies below that of ``random`` scores.

    A method that is no better than random weighs nothing; where none is better, all weigh the same.
    """
    margins = {name: max(random - area, 0.0) for name, area in aupc.items()}
    total = sum(margins.values())
    return {name: margin / total if total else 1 / len(margins) for name, margin in margins.items()}


def spearman(maps: Sequence[np.ndarray]) -> Float64:
    """Rank correlation of each pair of M maps (N,), (M, M). NaN where one of a pair is constant."""
    ranked = rankdata(np.stack([np.asarray(scores, np.float64) for scores in maps]), axis=1)  # (M, N)
    centred = ranked - ranked.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1))
    products = np.outer(length, length)
    found: Float64 = np.full(products.shape, np.nan)
    np.divide(centred @ centred.T, products, out=found, where=products > 0)
    return found
