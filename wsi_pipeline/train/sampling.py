"""Order of the bags in an epoch and the patches sampled from them. Pure functions of a random generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Int64


def epoch_order(labels: Sequence[int], balanced: bool, generator: np.random.Generator) -> list[int]:
    """Shuffled indices of the bags of one epoch.

    Parameters
    ----------
    labels : sequence of int
        Class index of each bag.
    balanced : bool
        False: every bag once. True: every class ceil(bags / classes) times. A class with fewer bags is repeated whole
        as often as it fits, and the rest is drawn without replacement; of a class with more bags a sample is used.
    generator : numpy.random.Generator

    Returns
    -------
    list of int
        About as many indices as there are bags.
    """
    if not balanced:
        return [int(i) for i in generator.permutation(len(labels))]
    classes = sorted(set(labels))
    per_class = -(-len(labels) // len(classes))
    drawn: list[int] = []
    for label in classes:
        of_class = np.flatnonzero(np.asarray(labels) == label)
        drawn.extend(np.tile(of_class, per_class // len(of_class)))
        drawn.extend(generator.choice(of_class, per_class % len(of_class), replace=False))
    return [int(i) for i in generator.permutation(drawn)]


def patch_rows(patches: int, most: int, generator: np.random.Generator) -> Int64 | None:
    """Ascending rows (n,) of a random sample of ``most`` patches, in the order of the grid.

    None where there are no more than ``most`` patches: then all are used.
    """
    if patches <= most:
        return None
    rows: Int64 = np.sort(generator.choice(patches, most, replace=False)).astype(np.int64)
    return rows
