"""Select the method with the lowest patch-flipping AUPC on validation slides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..outcome import outcome
from .explained_model import ExplainedModel
from .measures.patch_flipping import POINTS, curve, descending, mean_scores, perturbable
from .methods import Explainer


class Case(NamedTuple):
    """One validation slide, and the members of the ensemble that were not trained on it."""

    models: Sequence[ExplainedModel]
    features: Tensor  # (N, D), in the models' precision and on their device
    xy: Tensor  # (N, 2)


def validation_scores(
    cases: Iterable[Case],
    methods: Mapping[str, Explainer],
    *,
    points: int = POINTS,
) -> dict[str, float]:
    """Patch-flipping AUPC of each method for the predicted class, with patches dropped (see ``patch_flipping``).

    Parameters
    ----------
    cases : iterable of Case
        Consumed one at a time.
    methods : mapping of str to Explainer
        Each fits each model.
    points : int
        Of each curve.

    Returns
    -------
    dict of str to float
        Mean over the slides; NaN without slides. Lower is more faithful.
    """
    found: dict[str, list[float]] = {name: [] for name in methods}
    for members, features, xy in cases:
        target = likeliest(members, features, xy)
        perturbation = perturbable(members, features, xy)
        for name, explainer in methods.items():
            order = descending(mean_scores(explainer, members, features, xy, target))
            found[name].append(float(curve(perturbation, order, target, points=points).outcome.mean()))
    return {name: float(np.mean(areas)) if areas else math.nan for name, areas in found.items()}


def choose(aupc: Mapping[str, float]) -> str:
    """The method with the lowest AUPC, of ties the first by name. Raises ``ValueError`` if all are NaN."""
    measured = {name: area for name, area in aupc.items() if not math.isnan(area)}
    if not measured:
        raise ValueError(f"no method was measured on a validation slide: {', '.join(sorted(aupc)) or 'none given'}")
    return min(measured, key=lambda name: (measured[name], name))


def likeliest(members: Sequence[ExplainedModel], features: Tensor, xy: Tensor) -> int:
    """The class with the highest mean output over the members, without a threshold."""
    logits = np.stack([member.logits(features, xy).cpu().double().numpy() for member in members])  # (M, C)
    return int(outcome(members[0].task, logits).mean(axis=0).argmax())
