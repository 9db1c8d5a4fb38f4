"""Instance: what the model would say of each patch if it were the whole slide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...types import Float32, Unit
from ..frozen import frozen
from ..single_patch import logits_alone
from . import Explainer, explainers


class Instance:
    """Probability of the class for the bag {k}: no interaction with the other patches.

    "Single" of Early et al., "Model Agnostic Interpretability for Multiple Instance Learning", ICLR 2022. For
    attention-based MIL it is the classifier applied to h_k, as the only patch weighs 1.
    """

    unit: Unit = "probability"
    signed = False
    class_specific = True

    def fits(self, model: nn.Module) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        with frozen(model), torch.no_grad():
            probabilities = logits_alone(model, features, xy).softmax(1)  # (N, C)
        scores: Float32 = probabilities[:, target].float().cpu().numpy()  # (N,)
        return scores


@explainers.register("instance", paper="Early et al., ICLR 2022", unit="probability", signed=False, class_specific=True)
def instance() -> Explainer:
    """The class's probability for a slide of this one patch; for every model."""
    return Instance()
