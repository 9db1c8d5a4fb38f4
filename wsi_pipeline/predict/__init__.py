"""Prediction: every slide by every ensemble, using the members that were not trained on its patient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def weights_id(digests: Iterable[str]) -> str:
    """Identify the members of an ensemble by twelve hexadecimal characters.

    Parameters
    ----------
    digests : iterable of str
        SHA-256 of each member's weights, in the ensemble's order.

    Returns
    -------
    str
        The same for the same members only; explanations of other members are recognised by it.
    """
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
