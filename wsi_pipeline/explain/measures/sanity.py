"""Is a map about the model and about the slide? Checks that need no annotation."""

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
    """The same design with weights as before training, in eval mode. Draws nothing from the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(of_model.model, of_model.dim, len(of_model.classes), **of_model.options)
    return model.to(device).eval().requires_grad_(False)


def likeness(scores: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of the model's map (N,) with that of the redrawn model; NaN where one is constant.

    Model randomisation of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018. About 0 where the map
    shows what was learnt; near 1 where it shows the slide whatever the model.
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
    """How far the map moves at most, relative to its length, when the features (N, D) move a little.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019: max over ``samples`` of
    ||map(x + d) - map(x)|| / ||map(x)||, d uniform within ``radius``. Deviation: the radius is in standard deviations
    of the bag's features, as encoders differ in scale. ``generator``: on the CPU. NaN for a map of zeros.
    """
    map_ = np.asarray(explain(features), np.float64)  # (N,)
    length = float(np.linalg.norm(map_))
    reach = radius * features.std(unbiased=False).item()
    moved = 0.0
    for _ in range(samples):
        noise = torch.empty(features.shape, dtype=features.dtype).uniform_(-reach, reach, generator=generator)
        moved = max(moved, float(np.linalg.norm(explain(features + noise.to(features.device)) - map_)))
    return moved / length if length else float("nan")
