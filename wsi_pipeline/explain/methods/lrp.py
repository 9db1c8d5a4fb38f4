"""Layer-wise relevance propagation: the answer handed back, layer by layer, to what it was added up from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..propagation.lrp_rules import RULES, Relevance
from ..propagation.traced_tensor import traced_logits, trial
from . import Explainer, explainers


class LayerwiseRelevance:
    """Sum over d of the relevance of x_kd: t, the contrast, handed back through the model.

    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    PLOS ONE 2015, for linear layers and convolutions: z_j = sum_i x_i w_ij + b_j hands on R_j in proportion to its
    parts, z_j enlarged by ``epsilon`` of its sign, and parts of z_j's sign counted (1 + ``gamma``) times (Montavon et
    al., 2019, in the form for inputs of either sign). Ali et al., "XAI for Transformers: Better Explanations through
    Conservative Propagation", ICML 2022, for the rest: attention weights are constants, and so is the standard
    deviation of a LayerNorm. ReLU and GELU hand on what they are given, of a maximum the winner takes all.

    Relevance is kept per unit, R_i / x_i, as a gradient, so the backward pass is the model's own with other slopes,
    and epsilon may be 0. Conservation: the scores, "bias", "class token" and, where epsilon is not 0, "epsilon" add
    up to t. Copies of a patch hand theirs to the patch; zero padding gets none.

    A patch's part in the weights of others is not counted. So with epsilon and gamma 0 a model that is a weighted sum
    of linear embeddings without biases has exactly its contributions. How patches are pooled to nodes in a graph
    transformer is a weight, too.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, epsilon: float, gamma: float) -> None:
        self.epsilon = epsilon
        self.gamma = gamma

    def fits(self, explained: ExplainedModel) -> str | None:
        return trial(lambda features, xy: self(explained, features, xy, 0), explained.module)

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,); with the other parts they add up to t(x)."""
        model, t = explained.module, explained.target(target)
        way = Relevance(RULES, epsilon=self.epsilon, gamma=self.gamma)
        leaf = features.detach().requires_grad_()
        with frozen(model), torch.enable_grad():
            value = t(traced_logits(model, way, leaf, xy).value)  # ()
            parts = {place: list(leaves) for place, leaves in way.parts.items()}
            others = [part for leaves in parts.values() for part in leaves]
            slope, *slopes = torch.autograd.grad(value, [leaf, *others], allow_unused=True, materialize_grads=True)
        shares = iter([(part * per_unit).sum().item() for part, per_unit in zip(others, slopes, strict=True)])
        residual = {place: sum(next(shares) for _ in leaves) for place, leaves in parts.items()}
        if self.epsilon:
            residual["epsilon"] = sum(share.item() for share in way.swallowed)
        return Attribution((features * slope).sum(1), residual)


@explainers.register("lrp", paper="Bach et al., PLOS ONE 2015; Ali et al., ICML 2022")
def lrp(*, epsilon: float = 0.0, gamma: float = 0.0) -> Explainer:
    """The answer handed back to what it was added up from, attention held constant; the biases' share is told.

    ``epsilon``: in units of a layer's output, takes relevance away where parts cancel. ``gamma``: how much more the
    parts of the output's own sign count.
    """
    for name, number in (("epsilon", epsilon), ("gamma", gamma)):
        real = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not real or not math.isfinite(number) or number < 0:
            raise ConfigError(f"method option {name} is {number!r}; it must be a number of at least 0")
    return LayerwiseRelevance(float(epsilon), float(gamma))
