"""Random seeds and generators that depend on their purpose only, never on call order or process."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_from(*parts: object) -> int:
    """Derive a seed from its parts, the same on every machine.

    Parameters
    ----------
    *parts : object
        What the seed is for: the user's seed (any integer, negative ones too), and strings or numbers that tell this
        purpose from all others.

    Returns
    -------
    int
        From 0 to 2**63 - 1.
    """
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: object) -> np.random.Generator:
    """Make a separate generator for ``parts`` (see ``seed_from``), independent of call order and process."""
    return np.random.default_rng(seed_from(*parts))
