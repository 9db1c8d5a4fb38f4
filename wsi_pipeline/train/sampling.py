"""What an epoch shows: which bags in which order, and which of their patches. Pure functions of a generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Int64


def epoch_order(labels: Sequence[int], balanced: bool, generator: np.random.Generator) -> list[int]:
    """Indices of the bags of one epoch, about as many as there are, shuffled.

    ``balanced``: every class equally often, ceil(bags / classes) times. A class with too few bags is shown whole as
    often as it fits and the rest is drawn from it; of a class with more, the epoch shows a part.
    """
    if not balanced:
        return [int(i) for i in generator.permutation(len(labels))]
    classes = sorted(set(labels))
    share = -(-len(labels) // len(classes))
    drawn: list[int] = []
    for wanted in classes:
        members = np.flatnonzero(np.asarray(labels) == wanted)
        drawn.extend(np.tile(members, share // len(members)))
        drawn.extend(generator.choice(members, share % len(members), replace=False))
    return [int(i) for i in generator.permutation(drawn)]


def patch_rows(patches: int, most: int, generator: np.random.Generator) -> Int64 | None:
    """(n,) ascending rows of a sample of ``most`` patches, so that the grid's order is kept; None: all of them."""
    if patches <= most:
        return None
    rows: Int64 = np.sort(generator.choice(patches, most, replace=False)).astype(np.int64)
    return rows
