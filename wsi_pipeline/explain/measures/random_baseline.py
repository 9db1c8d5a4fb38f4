"""Scores that know nothing: the floor of every measure, and what a method has to beat."""

from __future__ import annotations

from ...rng import generator_for
from ...types import Float64

RANDOM = "random"  # what they are called among the methods


def chance(patches: int, *whose: object) -> Float64:
    """(N,) from 0 to 1, the same for the same ``whose``."""
    return generator_for(RANDOM, *whose).random(patches)
