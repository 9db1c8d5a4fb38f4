"""Infidelity: whether the scores of removed patches add up to the change of the target.

Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (https://arxiv.org/abs/1901.09392):
INFD = E_I (I . map - (t(x) - t(x - I)))^2, t the target (see ``explained_model``). The perturbations I are their square
removals: the patches of a random square of the slide are replaced by the mean of the bag, and I . map is the sum of
their scores. Patches drawn one by one would show little: half of a slide is like its other half, and a constant map
adds up as well.

Two normalisations make slides and methods comparable. Scores are scaled by the best factor, as in the authors' code,
since methods have units of their own. And the error is divided by the mean of (t(x) - t(x - I))^2: 0 where the scores
add up, 1 for a map of zeros. For a method with another baseline than the mean of the bag, that difference counts as an
error.

Deviation: a factor below zero would reward a map of the opposite sign, so such a map has 1, as zeros do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...types import Bool
from .patch_flipping import PerturbationModel


@dataclass(frozen=True, eq=False)
class Removals:
    """S squares of one bag, and an ensemble's change of t for each; computed once for all maps of the bag."""

    mask: Tensor  # (S, N) 1 where a patch is replaced, else 0
    change: Tensor  # (S,) t(x) - t(x - I)


def squares(xy: np.ndarray, count: int, generator: np.random.Generator) -> Bool:
    """Draw the patches of random squares, each at most a quarter of the bag.

    Parameters
    ----------
    xy : array, (N, 2)
        Positions in units of the patch stride.
    count : int
        Number S of squares.
    generator : numpy.random.Generator
        Draws the central patch and the number of patches, at least 1.

    Returns
    -------
    bool array, (S, N)
        The patches nearest to the centre in Chebyshev distance; of ties the first in the grid.
    """
    patches = len(xy)
    mask = np.zeros((count, patches), np.bool_)
    for row in mask:
        middle, size = generator.integers(patches), generator.integers(1, max(patches // 4, 1) + 1)
        row[np.argsort(np.abs(xy - xy[middle]).max(axis=1), kind="stable")[:size]] = True
    return mask


def removals(perturbation: PerturbationModel, mask: Bool, target: int) -> Removals:
    """Evaluate the bag without the patches of each row of ``mask`` (S, N); ``perturbation`` replaces patches."""
    rows = torch.from_numpy(mask)
    bags = [(row.long().argsort(stable=True), int((~row).sum())) for row in rows]  # order with kept patches first
    every = torch.arange(perturbation.patches)
    t, changes = perturbation.target(target), []
    for evaluate in perturbation.members:
        without = torch.cat([evaluate(order, [kept]) for order, kept in bags])  # (S, C)
        changes.append(t(evaluate(every, [perturbation.patches]) - without))  # (S,)
    return Removals(rows.double(), torch.stack(changes).mean(0))


def infidelity(removed: Removals, scores: np.ndarray) -> float:
    """Normalised infidelity of the map ``scores`` (N,), from 0 to 1; NaN where no removal changes t."""
    from captum.metrics import infidelity as captum_infidelity

    map_ = torch.from_numpy(np.asarray(scores, np.float64))[None]  # (1, N)
    of_zeros = removed.change.square().mean().item()  # of a map of zeros
    if of_zeros == 0:
        return float("nan")
    if (removed.mask @ map_[0]) @ removed.change <= 0:
        return 1.0

    def value(kept: Tensor) -> Tensor:
        """t less t(x), of the whole bag (1, N) or of each perturbed bag (S, N)."""
        return removed.change.new_zeros(1) if kept.all() else -removed.change

    found = captum_infidelity(
        value,
        lambda whole: (removed.mask, whole - removed.mask),
        torch.ones_like(map_),
        map_,
        n_perturb_samples=len(removed.change),
        normalize=True,
    )
    return max(float(found.item()) / of_zeros, 0.0)
