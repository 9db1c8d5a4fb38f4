"""Prediction: an ensemble's word on every slide, from the members that have not seen its patient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def weights_id(digests: Iterable[str]) -> str:
    """Twelve characters for the members that judged: maps of other members are told apart by them."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
