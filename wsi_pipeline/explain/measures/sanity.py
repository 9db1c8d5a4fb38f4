"""Sanity checks without annotation: whether a map depends on the model's weights, and how stable it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ...aggregate import models
from ...aggregate.checkpoint import ModelCard
from ..summary_maps.map_arithmetic import spearman

RADIUS = 0.02  # of a perturbation, in standard deviations of the bag's features


def redrawn(of_model: ModelCard, device: torch.device | str, seed: int) -> nn.Module:
    """A model of the same design with new initial weights, in eval mode; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(of_model.model, of_model.dim, len(of_model.classes), **of_model.options)
    return model.to(device).eval().requires_grad_(False)


def likeness(scores: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of the model's map (N,) with that of a redrawn model; NaN where one is constant.

    Model randomisation test of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018. About 0 if the map
    depends on the learnt weights; near 1 if it depends on the slide only.
    """
    return float(spearman([scores, other])[0, 1])


def max_sensitivity(
    explain: Callable[[Tensor], np.ndarray],
    features: Tensor,
    generator: torch.Generator,
    *,
    samples: int = 10,
    radius: float = RADIUS,
) -> float:
    """Largest relative change of the map under small changes of the features.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019: max over ``samples`` of
    ||map(x + d) - map(x)|| / ||map(x)||, d uniform within ``radius``. Deviation: the radius is in standard deviations
    of the bag's features, as encoders differ in scale.

    Parameters
    ----------
    explain : callable
        Features (N, D) -> map (N,).
    features : Tensor, (N, D)
    generator : torch.Generator
        On the CPU.
    samples : int
    radius : float

    Returns
    -------
    float
        NaN for a map of zeros.
    """
    map_ = np.asarray(explain(features), np.float64)  # (N,)
    length = float(np.linalg.norm(map_))
    reach = radius * features.std(unbiased=False).item()
    largest = 0.0
    for _ in range(samples):
        noise = torch.empty(features.shape, dtype=features.dtype).uniform_(-reach, reach, generator=generator)
        largest = max(largest, float(np.linalg.norm(explain(features + noise.to(features.device)) - map_)))
    return largest / length if length else float("nan")
