"""Which method explains this model best? The one whose map the model rests on most, measured on validation slides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..outcome import outcome
from .explained_model import ExplainedModel
from .measures.patch_flipping import POINTS, curve, falling, mean_scores, perturbable
from .methods import Explainer


class Case(NamedTuple):
    """One validation slide, and the members of the ensemble that may judge it: those not trained on it."""

    models: Sequence[ExplainedModel]
    features: Tensor  # (N, D), in the models' precision and on their device
    xy: Tensor  # (N, 2)


def validation_scores(
    cases: Iterable[Case],
    methods: Mapping[str, Explainer],
    *,
    points: int = POINTS,
) -> dict[str, float]:
    """AUPC of each method (see ``faithfulness``), patches dropped, of the predicted class; mean over the slides.

    Each method must fit each model. NaN for a method without a slide. Bags are taken one at a time.
    """
    found: dict[str, list[float]] = {name: [] for name in methods}
    for members, features, xy in cases:
        target = likeliest(members, features, xy)
        asked = perturbable(members, features, xy)
        for name, explainer in methods.items():
            order = falling(mean_scores(explainer, members, features, xy, target))
            found[name].append(float(curve(asked, order, target, points=points).outcome.mean()))
    return {name: float(np.mean(areas)) if areas else math.nan for name, areas in found.items()}


def choose(aupc: Mapping[str, float]) -> str:
    """The method with the lowest AUPC; of equals the first by name. Raises ``ValueError`` where none has a number."""
    measured = {name: area for name, area in aupc.items() if not math.isnan(area)}
    if not measured:
        raise ValueError(f"no method was measured on a validation slide: {', '.join(sorted(aupc)) or 'none given'}")
    return min(measured, key=lambda name: (measured[name], name))


def likeliest(members: Sequence[ExplainedModel], features: Tensor, xy: Tensor) -> int:
    """The class with the highest mean outcome over the members; no threshold, as it is not tuned to flip at one."""
    logits = np.stack([member.logits(features, xy).cpu().double().numpy() for member in members])  # (M, C)
    return int(outcome(members[0].task, logits).mean(axis=0).argmax())
