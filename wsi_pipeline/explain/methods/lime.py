"""LIME over regions: the straight plane that fits best what the model says of slides like this one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..regions import LeastSquares, RegionMethod, RegionOptions
from . import Explainer, explainers

_WIDTH = 0.25  # of the kernel, in cosine distance, as in the authors' code


def captum_lime(value: Callable[[Tensor], Tensor]) -> Any:
    """LIME of a function t of a bag: a region's coefficient in a linear fit of t over slides with half of them gone.

    Ribeiro, Singh and Guestrin, "'Why Should I Trust You?' Explaining the Predictions of Any Classifier", KDD 2016.
    Each sample keeps every region with probability 1/2, the patches of the others become the baseline, and it weighs
    exp(-d^2 / 2 w^2), d the cosine distance of what is kept from all, w = 1/4. Sampling is ``captum``'s. Deviations:
    least squares without the paper's choice of a few regions, as there are few; t and not a probability, so nothing
    saturates. A patch scores its region's coefficient over the number of its patches.
    """
    from captum.attr import Lime

    return Lime(value, interpretable_model=LeastSquares(), similarity_func=similarity)


def similarity(_: Tensor, __: Tensor, kept: Tensor, **___: object) -> float:
    """Weight of the sample that keeps these of the R regions, (1, R) of 0 and 1."""
    distance = 1 - math.sqrt(kept.double().mean().item())
    return math.exp(-(distance**2) / (2 * _WIDTH**2))


@explainers.register("lime", paper="Ribeiro et al., KDD 2016")
def lime(*, region: int | None = None, samples: int = 256, baseline: str = "zero", seed: int = 0) -> Explainer:
    """LIME over square regions of the slide: a linear fit to the answers when half of them are taken away.

    ``region``: side in patches; null for the smallest that gives at most 60 regions. ``samples``: forward passes.
    ``baseline``, what the patches taken away become: "zero" or "mean", the mean of the slide's patches.
    """
    return RegionMethod(RegionOptions(region, samples, baseline, seed), captum_lime)
