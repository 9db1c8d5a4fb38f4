"""KernelSHAP over regions: each region's fair share of the answer, by game theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..types import Float32, Unit
from . import Account, Explainer, explainers
from .regions import LeastSquares, RegionOptions, account_of_regions

_INFINITE = 1e10  # captum's million leaves a sum wrong by a ten-thousandth when samples are thousands


class RegionShap:
    """A region's score is its Shapley value: what it changes in t, the contrast, mean over all orders of arrival.

    Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017: the coefficients of a linear
    fit of t over slides with some regions kept, the others become the baseline: k of R kept with probability as
    1 / (k (R - k)), none and all once each, with weight 1e10 in place of infinity, so the scores add up to
    t(x) - t(x0). Sampling is ``captum``'s. A patch scores its region's value over the number of its patches.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, options: RegionOptions) -> None:
        self.options = options

    def fits(self, model: nn.Module) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        scores: Float32 = self.account(model, features, xy, target).scores.float().cpu().numpy()
        return scores

    def account(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Account:
        """Scores (N,); "intercept" is t(x0), and with "fit error", near 0, they add up to t(x)."""
        return account_of_regions(model, features, xy, target, self.options, captum_shap)


def captum_shap(value: Callable[[Tensor], Tensor]) -> Any:
    """captum's KernelSHAP of a function of a bag."""
    from captum.attr import KernelShap

    shap = KernelShap(value)
    shap.interpretable_model = LeastSquares()
    shap.inf_weight = _INFINITE
    return shap


@explainers.register(
    "kernel_shap", paper="Lundberg and Lee, NeurIPS 2017", unit="attribution", signed=True, class_specific=True
)
def kernel_shap(*, region: int | None = None, samples: int = 256, baseline: str = "zero", seed: int = 0) -> Explainer:
    """Shapley values of square regions of the slide, estimated; they add up to the answer less an empty slide's.

    ``region``: side in patches; null for the smallest that gives at most 60 regions. ``samples``: forward passes.
    ``baseline``, what the patches taken away become: "zero" or "mean", the mean of the slide's patches.
    """
    return RegionShap(RegionOptions(region, samples, baseline, seed))
