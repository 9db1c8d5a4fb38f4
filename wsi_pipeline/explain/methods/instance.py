"""Instance: the model's prediction for each patch as if it were the whole slide."""

from __future__ import annotations

import torch
from torch import Tensor

from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..single_patch import single_patch_logits
from . import Explainer, ExplainerUnit, explainers


class Instance:
    """The model's prediction for the bag {k}, without interaction with the other patches.

    "Single" of Early et al., "Model Agnostic Interpretability for Multiple Instance Learning", ICLR 2022. For
    attention-based MIL it is the classifier applied to h_k, as a single patch has weight 1.

    Unit by task: the probability of the class (softmax), the label's own probability (sigmoid), the predicted value in
    the label's unit, or the log hazard. A model with the same prediction for every single patch has a constant map.
    """

    unit: ExplainerUnit = "prediction"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        with frozen(explained.module), torch.no_grad():
            predictions = explained.predictions(single_patch_logits(explained.module, features, xy))  # (N, C)
        return Attribution(predictions[:, target])  # (N,)


@explainers.register("instance", paper="Early et al., ICLR 2022")
def instance() -> Explainer:
    """The model's prediction for a slide of a single patch: probability, value or risk; for every model."""
    return Instance()
