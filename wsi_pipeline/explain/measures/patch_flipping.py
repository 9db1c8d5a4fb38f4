"""Patch flipping: the model's output while patches are removed, the most relevant first.

Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", IEEE TNNLS 2017, on pixels;
Hense et al., "xMIL: Insightful Explanations for Multiple Instance Learning in Histopathology", NeurIPS 2024, on bags.
The area under the perturbation curve (AUPC) is the mean output over 101 fractions of the bag removed: low for a
faithful map. With the least relevant first it is high; that curve read backwards is insertion of the most relevant, so
no third curve is needed. The difference of the two areas does not depend on the shift that removal itself causes.

Two ways to remove a patch. Drop: from the bag, which for a transformer on a square also moves the others. Replace: its
features by those of a stand-in, the mean of the bag or a prototype; its position is kept.

Deviations: the last bag of dropping has one patch, as the models here do not accept an empty bag. Ties are removed in
the order of the grid, in both curves, so the gain of a constant map is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...aggregate.checkpoint import Task
from ...outcome import outcome
from ...types import Float64, Int64
from ..explained_model import LINKS, ExplainedModel, Target
from ..frozen import frozen
from ..methods import Explainer
from ..weighted_mean import weighted_mean
from .prefix_logits import prefix_logits

POINTS = 101
Evaluate = Callable[[Tensor, Sequence[int]], Tensor]  # order (N,), ascending sizes (P) -> logits (P, C)


@dataclass(frozen=True)
class PerturbationModel:
    """An ensemble that can be evaluated on parts of one bag, see ``perturbable``."""

    members: tuple[Evaluate, ...]
    patches: int
    fewest: int  # patches of the smallest bag: 1 where they are dropped, 0 where they are replaced
    task: Task
    scales: tuple[tuple[float, float], ...]  # of each member, see ``ExplainedModel``

    def target(self, index: int) -> Target:
        """The target t of class ``index``."""
        return Target(index, LINKS[self.task])


class Curve(NamedTuple):
    """Ensemble output for one class while more and more of the bag is removed, from the whole bag on."""

    outcome: Float64  # (P,) probability; value or risk where the task has none
    target: Float64  # (P,) t, see ``explained_model``


class Flipping(NamedTuple):
    """Both curves of one map."""

    most: Curve  # the most relevant patches are removed first
    least: Curve  # the least relevant first

    @property
    def aupc(self) -> float:
        """Area under the curve of most relevant first; lower is more faithful."""
        return float(self.most.outcome.mean())

    @property
    def insertion(self) -> Float64:
        """(P,) most relevant patches added first, from the smallest bag on; a higher mean is more faithful."""
        return self.least.outcome[::-1]

    @property
    def gain(self) -> float:
        """Area of least relevant first, less that of most relevant first; 0 on average for random scores."""
        return float(self.least.outcome.mean() - self.most.outcome.mean())


def perturbable(
    members: Sequence[ExplainedModel], features: Tensor, xy: Tensor, stand_in: Tensor | None = None
) -> PerturbationModel:
    """Prepare an ensemble for evaluation on parts of a bag.

    A model that is a weighted mean of its patches is called once, and all its curves are then sums (see
    ``prefix_logits``); any other is called at each point.

    Parameters
    ----------
    members : sequence of ExplainedModel
    features : Tensor, (N, D)
    xy : Tensor, (N, 2)
        Positions in units of the patch stride.
    stand_in : Tensor, (D,), optional
        Features that replace a removed patch; by default it is dropped.
    """
    evaluations = tuple(_evaluation(member.module, features, xy, stand_in) for member in members)
    fewest, scales = 1 if stand_in is None else 0, tuple(member.scale for member in members)
    return PerturbationModel(evaluations, len(features), fewest, members[0].task, scales)


def flipping(perturbation: PerturbationModel, scores: np.ndarray, target: int, *, points: int = POINTS) -> Flipping:
    """Both curves of the map ``scores`` (N,) for class ``target``, at ``points`` fractions."""
    orders = (descending(scores), descending(-scores))
    most, least = (curve(perturbation, order, target, points=points) for order in orders)
    return Flipping(most, least)


def curve(perturbation: PerturbationModel, order: Int64, target: int, *, points: int = POINTS) -> Curve:
    """Ensemble output while patches are removed in ``order`` (N,), at ``points`` fractions from 0 to 1."""
    kept = remaining(perturbation.patches, points, perturbation.fewest)  # (P,)
    sizes, place = np.unique(kept, return_inverse=True)
    last_first = torch.from_numpy(order[::-1].copy())  # the patches kept at each point are a prefix of this
    logits = torch.stack([evaluate(last_first, sizes.tolist()) for evaluate in perturbation.members])[:, place]
    outputs = [
        outcome(perturbation.task, of_member.numpy(), scale=scale)  # (P, C)
        for of_member, scale in zip(logits, perturbation.scales, strict=True)
    ]
    return Curve(np.mean(outputs, axis=0)[:, target], perturbation.target(target)(logits).mean(0).numpy())


def descending(scores: np.ndarray) -> Int64:
    """Rows (N,) from the highest score to the lowest; ties in the order of the grid."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def remaining(patches: int, points: int, fewest: int) -> Int64:
    """Number of patches left at each of ``points`` equal steps from all to none, at least ``fewest``."""
    steps = points - 1
    removed = (2 * patches * np.arange(points) + steps) // (2 * steps)  # rounded, half up
    return np.maximum(patches - removed, fewest)


def mean_scores(
    explainer: Explainer, members: Sequence[ExplainedModel], features: Tensor, xy: Tensor, target: int
) -> Float64:
    """Scores (N,) of an ensemble: the mean over its members."""
    maps = [explainer(member, features, xy, target).numpy().astype(np.float64) for member in members]
    mean: Float64 = np.mean(maps, axis=0)
    return mean


def _evaluation(model: nn.Module, features: Tensor, xy: Tensor, stand_in: Tensor | None) -> Evaluate:
    """The closed form where the model has one, else forward passes."""
    found = weighted_mean(model, features, xy)
    absent = None if stand_in is None else weighted_mean(model, stand_in[None], xy[:1])
    if found is None:
        return partial(forward_passes, model, features, xy, stand_in)
    return partial(prefix_logits, found, absent=absent)


def forward_passes(
    model: nn.Module, features: Tensor, xy: Tensor, stand_in: Tensor | None, order: Tensor, sizes: Sequence[int]
) -> Tensor:
    """The definition: the model's logits (P, C) for the first n patches of ``order``, in the order of the grid."""
    logits = []
    with frozen(model), torch.no_grad():
        for size in sizes:
            rows = order[:size].sort().values.to(features.device)
            if stand_in is None:
                logits.append(model(features[rows], xy[rows]).logits)
            else:
                mixed = stand_in.to(features).repeat(len(features), 1)
                mixed[rows] = features[rows]
                logits.append(model(mixed, xy).logits)
    return torch.stack(logits).cpu().double()
