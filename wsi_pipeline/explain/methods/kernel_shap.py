"""KernelSHAP over regions: estimated Shapley values of the regions for the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..regions import LeastSquares, RegionMethod, RegionOptions
from . import Explainer, explainers

_INFINITE = 1e10  # with captum's 1e6 the sum is off by 1e-4 when there are thousands of samples


def captum_shap(value: Callable[[Tensor], Tensor]) -> Any:
    """KernelSHAP of a function t of a bag: a region's Shapley value, its mean change of t over all orders of adding.

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. Lundberg and Lee, "A
    Unified Approach to Interpreting Model Predictions", NeurIPS 2017: the coefficients of a linear fit of t over slides
    with some regions kept and the others replaced by the baseline: k of R kept with probability proportional to
    1 / (k (R - k)), none and all once each, with weight 1e10 instead of infinity, so that the scores add up to
    t(x) - t(x0): "intercept" is t(x0), and "fit error" is near 0. Sampling is ``captum``'s. A patch's score is its
    region's value over the region's number of patches.
    """
    from captum.attr import KernelShap

    shap = KernelShap(value)
    shap.interpretable_model = LeastSquares()
    shap.inf_weight = _INFINITE
    return shap


@explainers.register("kernel_shap", paper="Lundberg and Lee, NeurIPS 2017")
def kernel_shap(*, region: int | None = None, samples: int = 256, baseline: str = "zero", seed: int = 0) -> Explainer:
    """Estimated Shapley values of square regions; they add up to the change of the target from a baseline bag.

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
    return RegionMethod(RegionOptions(region, samples, baseline, seed), captum_shap)
