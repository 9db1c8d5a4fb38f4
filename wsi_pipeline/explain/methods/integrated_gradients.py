"""Integrated gradients: the gradient along the way from a slide of nothing to this one, times that way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...types import Unit
from ..baseline import BASELINES, baseline_row
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..method_options import check_choice, check_whole
from . import Explainer, explainers


class IntegratedGradients:
    """Sum over d of (x_kd - x0_d) * integral over s of dt/dx_kd at x0 + s (x - x0), s from 0 to 1, t the contrast.

    Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017. The scores add up to
    t(x) - t(x0); what the Gauss-Legendre rule of ``steps`` points misses stands in the account. x0 is a bag of as
    many patches, all alike. ``captum`` does the sum. It is given one bag as a batch of one, (1, N, D), and one step a
    call: given (N, D) it would mix steps into one bag, and given all steps at once hold them all in memory.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, steps: int, baseline: str) -> None:
        self.steps = steps
        self.baseline = baseline

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,); with "baseline", t(x0), and "integration error" they add up to t(x)."""
        from captum.attr import IntegratedGradients as Captum

        model, t = explained.module, explained.target(target)
        bag = features.detach()[None]  # (1, N, D)
        start = baseline_row(features, self.baseline).expand_as(bag)

        def value(bags: Tensor) -> Tensor:
            return t(model(bags[0], xy).logits)[None]  # (1,)

        with frozen(model), torch.enable_grad():
            integral: Any = Captum(value).attribute(bag, start, n_steps=self.steps, internal_batch_size=1)
            scores: Tensor = integral[0].detach().sum(1)  # (N,)
        with frozen(model), torch.no_grad():
            there, origin = value(bag).item(), value(start).item()
        return Attribution(scores, {"baseline": origin, "integration error": there - origin - scores.sum().item()})


@explainers.register("integrated_gradients", paper="Sundararajan et al., ICML 2017")
def integrated_gradients(*, steps: int = 50, baseline: str = "zero") -> Explainer:
    """Gradients added up on the way from an empty slide: a sum that is the answer less that of the empty slide.

    ``steps``: points on the way, each a forward and a backward pass. ``baseline``, what every patch is at the start:
    "zero" or "mean", the mean of the slide's patches.
    """
    check_whole("steps", steps)
    check_choice("baseline", baseline, BASELINES)
    return IntegratedGradients(steps, baseline)
