"""Layer-wise relevance propagation: the target redistributed, layer by layer, to the inputs of each sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..propagation.lrp_rules import RULES, RelevanceRules
from ..propagation.traced_tensor import misfit_on_small_bag, traced_logits
from . import Explainer, explainers


class LayerwiseRelevance:
    """Sum over d of the relevance of x_kd, when t is redistributed through the model.

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. Bach et al., "On
    Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation", PLOS ONE 2015, for
    linear layers and convolutions: z_j = sum_i x_i w_ij + b_j passes R_j on in proportion to its summands, with
    ``epsilon`` of z_j's sign added to z_j, and summands of z_j's sign counted 1 + ``gamma`` times (Montavon et al.,
    2019, in the form for inputs of either sign). Ali et al., "XAI for Transformers: Better Explanations through
    Conservative Propagation", ICML 2022, for the rest: attention weights are constants, and so is the standard
    deviation of a LayerNorm. ReLU and GELU pass relevance on unchanged; for a maximum, the winner takes all.

    Relevance is kept per unit of the value, R_i / x_i, as a gradient, so the backward pass is the model's own with
    other slopes, and epsilon may be 0. Conservation: the scores, "bias", "class token" and, if epsilon is not 0,
    "epsilon" add up to t. Copies of a patch pass theirs to the patch; zero padding receives none.

    The effect of a patch on the weights of others is not counted. So with epsilon and gamma 0, a weighted sum of linear
    embeddings without biases has exactly its contributions. The assignment of patches to the nodes of a graph
    transformer is a constant weight as well.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, epsilon: float, gamma: float) -> None:
        self.epsilon = epsilon
        self.gamma = gamma

    def fits(self, explained: ExplainedModel) -> str | None:
        return misfit_on_small_bag(lambda features, xy: self(explained, features, xy, 0), explained.module)

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,); with the residual they add up to t(x)."""
        model, t = explained.module, explained.target(target)
        rules = RelevanceRules(RULES, epsilon=self.epsilon, gamma=self.gamma)
        leaf = features.detach().requires_grad_()
        with frozen(model), torch.enable_grad():
            value = t(traced_logits(model, rules, leaf, xy).value)  # ()
            constants = {place: list(leaves) for place, leaves in rules.constants.items()}
            others = [constant for leaves in constants.values() for constant in leaves]
            slope, *slopes = torch.autograd.grad(value, [leaf, *others], allow_unused=True, materialize_grads=True)
        relevance = iter(
            [(constant * per_unit).sum().item() for constant, per_unit in zip(others, slopes, strict=True)]
        )
        residual = {place: sum(next(relevance) for _ in leaves) for place, leaves in constants.items()}
        if self.epsilon:
            residual["epsilon"] = sum(absorbed.item() for absorbed in rules.absorbed)
        return Attribution((features * slope).sum(1), residual)


@explainers.register("lrp", paper="Bach et al., PLOS ONE 2015; Ali et al., ICML 2022")
def lrp(*, epsilon: float = 0.0, gamma: float = 0.0) -> Explainer:
    """The target redistributed through the layers, attention held constant; the biases' part is reported.

    Parameters
    ----------
    epsilon : float
        In units of a layer's output; absorbs relevance where summands cancel.
    gamma : float
        Additional weight of summands of the output's own sign.
    """
    for name, number in (("epsilon", epsilon), ("gamma", gamma)):
        real = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not real or not math.isfinite(number) or number < 0:
            raise ConfigError(f"method option {name} is {number!r}; it must be a number of at least 0")
    return LayerwiseRelevance(float(epsilon), float(gamma))
