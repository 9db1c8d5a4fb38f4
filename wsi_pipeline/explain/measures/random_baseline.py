"""Random scores: the baseline of every measure, which a method has to beat."""

from __future__ import annotations

from ...rng import generator_for
from ...types import Float64

RANDOM = "random"  # their name among the methods


def random_scores(patches: int, *key: object) -> Float64:
    """Uniform random scores (N,) from 0 to 1, the same for the same ``key``."""
    return generator_for(RANDOM, *key).random(patches)
