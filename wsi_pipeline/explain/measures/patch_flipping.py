"""Does the model rest on the patches that a map names? Take them away, the most relevant first, and ask again.

Patch flipping: Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", IEEE TNNLS
2017, on pixels; Hense et al., "xMIL: Insightful Explanations for Multiple Instance Learning in Histopathology",
NeurIPS 2024, on bags. The area under the curve (AUPC) is the mean of what the model says over 101 shares of the bag
taken away: low where the map is faithful. With the least relevant first it is high; that curve read backwards is
insertion of the most relevant, so it needs no third one. The difference of the two areas does not depend on how the
taking away itself shifts the answer.

Two ways to take a patch away. Drop: out of the bag, which for a transformer on a square also moves the others.
Replace: its features by those of one stand-in, the mean of the bag or a prototype; its place is kept.

Deviations: the last bag of dropping holds one patch, as no model here answers an empty one. Of equal scores the
first in the grid goes first, in both orders, so a constant map gains exactly nothing.
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
Answer = Callable[[Tensor, Sequence[int]], Tensor]  # order (N,), ascending sizes (P) -> logits (P, C)


@dataclass(frozen=True)
class PerturbationModel:
    """An ensemble that can be asked about parts of one bag."""

    members: tuple[Answer, ...]
    patches: int
    fewest: int  # patches of the emptiest bag: 1 where they are dropped, 0 where they are replaced
    task: Task
    scales: tuple[tuple[float, float], ...]  # of each member, see ``ExplainedModel``

    def target(self, index: int) -> Target:
        """What is explained of class ``index``."""
        return Target(index, LINKS[self.task])


class Curve(NamedTuple):
    """What an ensemble says of the target as more and more of the bag goes, from the whole bag on."""

    outcome: Float64  # (P,) probability; value or risk where the task has none
    target: Float64  # (P,) what most methods explain, see ``explained_model``


class Flipping(NamedTuple):
    """Both orders of one map."""

    most: Curve  # the most relevant go first
    least: Curve

    @property
    def aupc(self) -> float:
        """The lower, the more faithful."""
        return float(self.most.outcome.mean())

    @property
    def insertion(self) -> Float64:
        """(P,) the most relevant come first, from the emptiest bag on. Its mean: the higher, the more faithful."""
        return self.least.outcome[::-1]

    @property
    def gain(self) -> float:
        """Area of least relevant first, less that of most relevant first; 0 for random scores, on average."""
        return float(self.least.outcome.mean() - self.most.outcome.mean())


def perturbable(
    members: Sequence[ExplainedModel], features: Tensor, xy: Tensor, stand_in: Tensor | None = None
) -> PerturbationModel:
    """``members`` ready to be evaluated on parts of the bag (N, D) at ``xy`` (N, 2).

    ``stand_in``: features (D,) of what replaces a patch; None: it is dropped. A model that is a weighted mean of its
    patches is called once, and all its curves are then sums (see ``prefix_logits``); any other is called at each point.
    """
    answers = tuple(_answer(member.module, features, xy, stand_in) for member in members)
    fewest, scales = 1 if stand_in is None else 0, tuple(member.scale for member in members)
    return PerturbationModel(answers, len(features), fewest, members[0].task, scales)


def flipping(asked: PerturbationModel, scores: np.ndarray, target: int, *, points: int = POINTS) -> Flipping:
    """Both curves of the map ``scores`` (N,)."""
    most, least = (curve(asked, order, target, points=points) for order in (falling(scores), falling(-scores)))
    return Flipping(most, least)


def curve(asked: PerturbationModel, order: Int64, target: int, *, points: int = POINTS) -> Curve:
    """Ensemble output while patches are removed in ``order`` (N,), at ``points`` fractions from 0 to 1."""
    kept = remaining(asked.patches, points, asked.fewest)  # (P,)
    sizes, place = np.unique(kept, return_inverse=True)
    last_first = torch.from_numpy(order[::-1].copy())  # what goes last is a prefix of this
    logits = torch.stack([answer(last_first, sizes.tolist()) for answer in asked.members])[:, place]  # (M, P, C)
    outputs = [
        outcome(asked.task, of_one.numpy(), scale=scale) for of_one, scale in zip(logits, asked.scales, strict=True)
    ]
    return Curve(np.mean(outputs, axis=0)[:, target], asked.target(target)(logits).mean(0).numpy())


def falling(scores: np.ndarray) -> Int64:
    """Rows (N,) from the highest score; of equals, the first in the grid."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def remaining(patches: int, points: int, fewest: int) -> Int64:
    """How many of ``patches`` are left at each of ``points`` equal steps from all to none, at least ``fewest``."""
    steps = points - 1
    gone = (2 * patches * np.arange(points) + steps) // (2 * steps)  # rounded, half up
    return np.maximum(patches - gone, fewest)


def mean_scores(
    explainer: Explainer, members: Sequence[ExplainedModel], features: Tensor, xy: Tensor, target: int
) -> Float64:
    """An ensemble's map (N,): the mean of its members'."""
    maps = [explainer(member, features, xy, target).numpy().astype(np.float64) for member in members]
    mean: Float64 = np.mean(maps, axis=0)
    return mean


def _answer(model: nn.Module, features: Tensor, xy: Tensor, stand_in: Tensor | None) -> Answer:
    found = weighted_mean(model, features, xy)
    absent = None if stand_in is None else weighted_mean(model, stand_in[None], xy[:1])
    if found is None:
        return partial(called, model, features, xy, stand_in)
    return partial(prefix_logits, found, absent=absent)


def called(
    model: nn.Module, features: Tensor, xy: Tensor, stand_in: Tensor | None, order: Tensor, sizes: Sequence[int]
) -> Tensor:
    """The definition: the model's own logits (P, C) of the first n patches of ``order``, in the grid's order."""
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
