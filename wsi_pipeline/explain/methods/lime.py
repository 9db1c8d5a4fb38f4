"""LIME over regions: the linear function that best fits the target on slides with some regions removed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..regions import LeastSquares, RegionMethod, RegionOptions
from . import Explainer, explainers

_WIDTH = 0.25  # of the kernel, in cosine distance, as in the authors' code


def captum_lime(value: Callable[[Tensor], Tensor]) -> Any:
    """LIME of a function t of a bag: a region's coefficient in a linear fit of t over slides with half of them removed.

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. Ribeiro, Singh and
    Guestrin, "'Why Should I Trust You?' Explaining the Predictions of Any Classifier", KDD 2016. A sample keeps each
    region with probability 1/2 and replaces the patches of the others by the baseline; its weight is
    exp(-d^2 / 2 w^2), d the cosine distance between the kept regions and all regions, w = 1/4. Sampling is
    ``captum``'s. Deviations: least squares without the paper's selection of a few regions, as there are few; t instead
    of a probability, which would saturate. A patch's score is its region's coefficient over the region's number of
    patches.
    """
    from captum.attr import Lime

    return Lime(value, interpretable_model=LeastSquares(), similarity_func=similarity)


def similarity(_: Tensor, __: Tensor, kept: Tensor, **___: object) -> float:
    """Weight of a sample; ``kept`` (1, R) is 1 for each of the R regions that it keeps, else 0."""
    distance = 1 - math.sqrt(kept.double().mean().item())
    return math.exp(-(distance**2) / (2 * _WIDTH**2))


@explainers.register("lime", paper="Ribeiro et al., KDD 2016")
def lime(*, region: int | None = None, samples: int = 256, baseline: str = "zero", seed: int = 0) -> Explainer:
    """LIME over square regions of the slide: a linear fit to the target with half of them removed at random.

    Parameters
    ----------
    region : int or None
        Side of a region in patches; None for the smallest that gives at most 60 regions.
    samples : int
        Forward passes.
    baseline : str
        Features of removed patches: "zero", or "mean", the mean of the slide's patches.
    seed : int
        Of the sampling.
    """
    return RegionMethod(RegionOptions(region, samples, baseline, seed), captum_lime)
