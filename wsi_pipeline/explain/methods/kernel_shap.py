"""KernelSHAP over regions: each region's fair share of the answer, by game theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..regions import LeastSquares, RegionMethod, RegionOptions
from . import Explainer, explainers

_INFINITE = 1e10  # captum's million leaves a sum wrong by a ten-thousandth when samples are thousands


def captum_shap(value: Callable[[Tensor], Tensor]) -> Any:
    """KernelSHAP of a function t of a bag: a region's Shapley value, what it changes in t, mean over orders of arrival.

    Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017: the coefficients of a linear
    fit of t over slides with some regions kept, the others become the baseline: k of R kept with probability as
    1 / (k (R - k)), none and all once each, with weight 1e10 in place of infinity, so the scores add up to
    t(x) - t(x0): "intercept" is t(x0), and "fit error" is near 0. Sampling is ``captum``'s. A patch scores its
    region's value over the number of its patches.
    """
    from captum.attr import KernelShap

    shap = KernelShap(value)
    shap.interpretable_model = LeastSquares()
    shap.inf_weight = _INFINITE
    return shap


@explainers.register("kernel_shap", paper="Lundberg and Lee, NeurIPS 2017")
def kernel_shap(*, region: int | None = None, samples: int = 256, baseline: str = "zero", seed: int = 0) -> Explainer:
    """Shapley values of square regions of the slide, estimated; they add up to the answer less an empty slide's.

    ``region``: side in patches; null for the smallest that gives at most 60 regions. ``samples``: forward passes.
    ``baseline``, what the patches taken away become: "zero" or "mean", the mean of the slide's patches.
    """
    return RegionMethod(RegionOptions(region, samples, baseline, seed), captum_shap)
