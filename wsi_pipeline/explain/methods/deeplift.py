"""DeepLIFT: each patch's part in the change of the target from a baseline bag to this one."""

from __future__ import annotations

import torch
from torch import Tensor

from ...aggregate.nystrom import TokenAttention
from ...types import Unit
from ..baseline import BASELINES, baseline_row
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..method_options import check_choice
from ..propagation.deeplift_rules import COMPLETE, FROZEN_ATTENTION
from ..propagation.traced_tensor import BackwardRules, misfit_on_small_bag, traced_logits
from . import Explainer, explainers


class DeepLift:
    """Sum over d of m_kd (x_kd - x0_d), m the multipliers: the scores add up to t(x) - t(x0).

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. Shrikumar, Greenside
    and Kundaje, "Learning Important Features Through Propagating Activation Differences", ICML 2017, with the rescale
    rule for every function of one variable, and for products d(uv) = mean(v) du + mean(u) dv, so that attention, gates
    and LayerNorm are complete as well. Weights that sum to 1 (softmax, sparsemax, 1.5-entmax) are f(z_k - s): the
    rescale rule applies to f, and each score's part in the threshold s follows from that sum.

    x0, ``baseline``, is a bag of as many patches, all equal. With zero, all slides are measured from the same point,
    but no real patch is zero. With the mean of the bag, a patch that is like the others scores near 0.

    Deviations: softmax is not treated as exp times 1 / sum by the product rule; that would be complete as well, but its
    multipliers grow as the ratio of the two sums and cancel, and a constant added to all scores changes them. In
    TransMIL the attention weights of x are used for x0 as well; the remainder is reported as "frozen attention". Of a
    maximum the winner takes all, and selected patches are those that the model selects in x; where x0 would have
    selected something other than a patch's own baseline, the remainder is reported as "frozen selection".
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, baseline: str) -> None:
        self.baseline = baseline

    def fits(self, explained: ExplainedModel) -> str | None:
        return misfit_on_small_bag(lambda features, xy: self(explained, features, xy, 0), explained.module)

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,); with "baseline", t(x0), and the remainder of frozen values they add up to t(x)."""
        model, t = explained.module, explained.target(target)
        transformer = any(isinstance(part, TokenAttention) for part in model.modules())
        rules = BackwardRules(FROZEN_ATTENTION if transformer else COMPLETE)
        leaf = features.detach().requires_grad_()
        start = baseline_row(features, self.baseline).expand_as(features)
        with frozen(model), torch.enable_grad():
            logits = traced_logits(model, rules, leaf, xy, start)
            (multipliers,) = torch.autograd.grad(t(logits.value), leaf)
        with frozen(model), torch.no_grad():
            origin = t(model(start, xy).logits)
        residual = {"baseline": origin.item()}
        remainder = (t(logits.reference) - origin).item()
        if rules.frozen_kinds and remainder:
            residual[f"frozen {' and '.join(sorted(rules.frozen_kinds))}"] = remainder
        return Attribution(((features - start) * multipliers).sum(1), residual)


@explainers.register("deeplift", paper="Shrikumar et al., ICML 2017")
def deeplift(*, baseline: str = "zero") -> Explainer:
    """DeepLIFT: the change from a baseline bag, distributed at each operator; the scores add up to it.

    Parameters
    ----------
    baseline : str
        Features of every patch of the baseline bag: "zero", or "mean", the mean of the slide's patches.
    """
    check_choice("baseline", baseline, BASELINES)
    return DeepLift(baseline)
