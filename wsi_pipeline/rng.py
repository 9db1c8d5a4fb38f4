"""Random seeds and generators that depend on what they are for, never on order or process."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_from(*parts: object) -> int:
    """A 63-bit seed determined by ``parts``, the same on every machine; any user seed is valid, negative ones too."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: object) -> np.random.Generator:
    """A separate generator for ``parts``: what it draws depends neither on call order nor on the process."""
    return np.random.default_rng(seed_from(*parts))
