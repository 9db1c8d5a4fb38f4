"""DeepLIFT: how much of the change from an empty slide to this one is due to each patch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...aggregate.nystrom import TokenAttention
from ...types import Unit
from ..baseline import BASELINES, baseline_row
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..method_options import check_choice
from ..propagation.deeplift_rules import COMPLETE, HELD_ATTENTION
from ..propagation.traced_tensor import BackwardRules, traced_logits, trial
from . import Explainer, explainers


class DeepLift:
    """Sum over d of m_kd (x_kd - x0_d), m the multipliers: the scores add up to t(x) - t(x0), t the contrast.

    Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation Differences", ICML
    2017, with the rescale rule for every function of one number, and for products d(uv) = mean(v) du + mean(u) dv, so
    that attention, gates and LayerNorm are complete, too. Weights that sum to 1 (softmax, sparsemax, 1.5-entmax) are
    f(z_k - t): the rescale rule on f, and the share of each score in the threshold t follows from that sum.

    x0, ``baseline``: a bag of as many patches, all alike. With zero the sum is measured from the same place for
    every slide, but no patch looks like it. With the mean of the bag, a patch like the others scores near 0.

    Deviations: softmax is not taken as exp times 1 / sum by the product rule; that is complete as well, but its
    multipliers grow as the ratio of the two sums and cancel, and a constant added to all scores changes them. In
    TransMIL the attention weights are those of x for x0, too: what that leaves is told as "frozen attention". Of a
    maximum the winner takes all, and patches that a model picks are those it picks in x; where x0 would have had
    another in their place that is no other patch, what that leaves is told as "frozen selection".
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, baseline: str) -> None:
        self.baseline = baseline

    def fits(self, explained: ExplainedModel) -> str | None:
        return trial(lambda features, xy: self(explained, features, xy, 0), explained.module)

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,); with "baseline", t(x0), and what is held at x, they add up to t(x)."""
        model, t = explained.module, explained.target(target)
        way = BackwardRules(
            HELD_ATTENTION if any(isinstance(part, TokenAttention) for part in model.modules()) else COMPLETE
        )
        leaf = features.detach().requires_grad_()
        start = baseline_row(features, self.baseline).expand_as(features)
        with frozen(model), torch.enable_grad():
            logits = traced_logits(model, way, leaf, xy, start)
            (multipliers,) = torch.autograd.grad(t(logits.value), leaf)
        with frozen(model), torch.no_grad():
            origin = t(model(start, xy).logits)
        elsewhere = {"baseline": origin.item()}
        left = (t(logits.reference) - origin).item()
        if way.held and left:
            elsewhere[f"frozen {' and '.join(sorted(way.held))}"] = left
        return Attribution(((features - start) * multipliers).sum(1), elsewhere)


@explainers.register("deeplift", paper="Shrikumar et al., ICML 2017")
def deeplift(*, baseline: str = "zero") -> Explainer:
    """The change from an empty slide to this one, shared out at each operator: adds up like integrated gradients.

    ``baseline``, what every patch of the empty slide is: "zero" or "mean", the mean of the slide's patches.
    """
    check_choice("baseline", baseline, BASELINES)
    return DeepLift(baseline)
