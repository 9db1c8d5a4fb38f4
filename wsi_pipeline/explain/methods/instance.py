"""Instance: what the model would predict for each patch if it were the whole slide."""

from __future__ import annotations

import torch
from torch import Tensor

from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..single_patch import logits_alone
from . import Explainer, ExplainerUnit, explainers


class Instance:
    """The model's prediction for the bag {k}: no interaction with the other patches.

    "Single" of Early et al., "Model Agnostic Interpretability for Multiple Instance Learning", ICLR 2022. For
    attention-based MIL it is the classifier applied to h_k, as a single patch has weight 1.

    By task: the probability of the class (softmax), the label's own probability (sigmoid), the predicted value in the
    label's unit, or the log hazard. A model that says the same of every single patch would give a constant map.
    """

    unit: ExplainerUnit = "prediction"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        with frozen(explained.module), torch.no_grad():
            predictions = explained.predictions(logits_alone(explained.module, features, xy))  # (N, C)
        return Attribution(predictions[:, target])  # (N,)


@explainers.register("instance", paper="Early et al., ICLR 2022")
def instance() -> Explainer:
    """The model's prediction for a slide of this one patch: probability, value or risk; for every model."""
    return Instance()
