"""Do the scores of what is taken away add up to what the model then no longer says?

Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (https://arxiv.org/abs/1901.09392):
INFD = E_I (I . map - (t(x) - t(x - I)))^2, t the target. The perturbations I are their square removals: the patches
of a random square of the slide become the mean of the bag, and I . map is the sum of their scores. Patches drawn one
by one would tell little: half of a slide is like its other half, and a constant map adds up, too.

Two norms make slides and methods comparable. Scores are scaled by the best factor, as in the authors' code, since they
come in units of their own. And the error is divided by the mean of (t(x) - t(x - I))^2: 0 where the scores add up, 1
for a map of zeros. A method that measures from elsewhere than the mean of the bag has that difference as an error.

Deviation: a factor below zero would praise a map that points the other way, so such a map has 1, like zeros.
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
    """S squares of one bag, and what an ensemble says without each: asked once for all maps of the bag."""

    gone: Tensor  # (S, N) 1 where a patch is replaced, else 0
    lost: Tensor  # (S,) t(x) - t(x - I)


def squares(xy: np.ndarray, count: int, generator: np.random.Generator) -> Bool:
    """(count, N): the patches around a random one, those in the smallest square first; at most a quarter of the bag.

    ``xy`` (N, 2). How many they are is drawn, too, 1 at least. Of equally near patches the first in the grid is in.
    """
    patches = len(xy)
    gone = np.zeros((count, patches), np.bool_)
    for row in gone:
        middle, size = generator.integers(patches), generator.integers(1, max(patches // 4, 1) + 1)
        row[np.argsort(np.abs(xy - xy[middle]).max(axis=1), kind="stable")[:size]] = True
    return gone


def removals(asked: PerturbationModel, gone: Bool, target: int) -> Removals:
    """Ask about the bag without the patches of each row of ``gone`` (S, N). ``asked``: where patches are replaced."""
    mask = torch.from_numpy(gone)
    questions = [(row.long().argsort(stable=True), int((~row).sum())) for row in mask]  # first those that stay
    every = torch.arange(asked.patches)
    goal, lost = asked.target(target), []
    for answer in asked.members:
        left = torch.cat([answer(order, [kept]) for order, kept in questions])  # (S, C)
        lost.append(goal(answer(every, [asked.patches]) - left))  # (S,)
    return Removals(mask.double(), torch.stack(lost).mean(0))


def infidelity(removed: Removals, scores: np.ndarray) -> float:
    """From 0 to 1, of the map ``scores`` (N,); NaN where no removal changes the answer."""
    from captum.metrics import infidelity as captum_infidelity

    map_ = torch.from_numpy(np.asarray(scores, np.float64))[None]  # (1, N)
    zeros = removed.lost.square().mean().item()  # of a map of zeros
    if zeros == 0:
        return float("nan")
    if (removed.gone @ map_[0]) @ removed.lost <= 0:
        return 1.0

    def value(kept: Tensor) -> Tensor:
        """What was said beyond t(x), of the whole bag (1, N) or of each that is left (S, N)."""
        return removed.lost.new_zeros(1) if kept.all() else -removed.lost

    found = captum_infidelity(
        value,
        lambda whole: (removed.gone, whole - removed.gone),
        torch.ones_like(map_),
        map_,
        n_perturb_samples=len(removed.lost),
        normalize=True,
    )
    return max(float(found.item()) / zeros, 0.0)
