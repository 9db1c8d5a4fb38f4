"""Which method explains this model best? The one whose map the model rests on most, measured on validation slides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..outcome import outcome
from .frozen import frozen
from .measures.patch_flipping import POINTS, curve, falling, mean_scores, perturbable
from .methods import Explainer


class Case(NamedTuple):
    """One validation slide, and the members of the ensemble that may judge it: those not trained on it."""

    models: Sequence[nn.Module]
    features: Tensor  # (N, D), in the models' precision and on their device
    xy: Tensor  # (N, 2)


def validation_scores(
    cases: Iterable[Case],
    methods: Mapping[str, Explainer],
    *,
    points: int = POINTS,
    task: str = "classification",
) -> dict[str, float]:
    """AUPC of each method (see ``faithfulness``), patches dropped, of the predicted class; mean over the slides.

    Each method must fit each model. NaN for a method without a slide. Bags are taken one at a time.
    """
    found: dict[str, list[float]] = {name: [] for name in methods}
    for models, features, xy in cases:
        target = likeliest(models, features, xy, task)
        asked = perturbable(models, features, xy)
        for name, explainer in methods.items():
            order = falling(mean_scores(explainer, models, features, xy, target))
            found[name].append(float(curve(asked, order, target, points=points, task=task).outcome.mean()))
    return {name: float(np.mean(areas)) if areas else math.nan for name, areas in found.items()}


def choose(aupc: Mapping[str, float]) -> str:
    """The method with the lowest AUPC; of equals the first by name. Raises ``ValueError`` where none has a number."""
    measured = {name: area for name, area in aupc.items() if not math.isnan(area)}
    if not measured:
        raise ValueError(f"no method was measured on a validation slide: {', '.join(sorted(aupc)) or 'none given'}")
    return min(measured, key=lambda name: (measured[name], name))


def likeliest(models: Sequence[nn.Module], features: Tensor, xy: Tensor, task: str = "classification") -> int:
    """The class with the highest mean outcome over the members; no threshold, as it is not tuned to flip at one."""
    logits = []
    for model in models:
        with frozen(model), torch.no_grad():
            logits.append(model(features, xy).logits.cpu().double().numpy())
    return int(outcome(task, np.stack(logits)).mean(axis=0).argmax())
