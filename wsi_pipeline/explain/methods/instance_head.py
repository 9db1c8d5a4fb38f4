"""Instance head: the prediction of the model's own classifier of patches."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ...aggregate import InstanceLogits
from ...errors import ConfigError
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from . import Explainer, ExplainerUnit, explainers


class InstanceHead:
    """Probability of the class by the model's instance classifier, in the context of the slide.

    DTFD: Zhang et al., CVPR 2022, L_k^c = K a_k w_c · h_k of the first tier, p_k = softmax_c(L_k). CLAM: the class's
    instance classifier (Lu et al., 2021), in the class or not. DSMIL: softmax of the instance stream (Li et al., 2021).
    For multilabel tasks, the softmax over the classes becomes a sigmoid of each label. ``instance`` instead applies the
    bag's classifier to a bag of one. An additive model's evidence is not a probability: that is its ``contribution``.
    Regression and survival have no probability, so this method does not fit them.
    """

    unit: ExplainerUnit = "probability"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        if not isinstance(explained.module, InstanceLogits):
            return "has no classifier of patches; this method needs a model with instance_logits(), as dtfd has"
        if not explained.has_probabilities:
            return f"predicts no probability ({explained.task}); this method needs one, instance does not"
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        if reason := self.fits(explained):
            raise ConfigError(f"the model {type(explained.module).__name__} {reason}; leave it out of explain.methods")
        with frozen(explained.module), torch.no_grad():
            logits = cast(InstanceLogits, explained.module).instance_logits(features, xy)
        return Attribution(probabilities(logits, explained)[:, target])  # (N,)


def probabilities(logits: Tensor, explained: ExplainedModel) -> Tensor:
    """(N, C) from (N, C) by the model's link, or from (N, C, 2), absent and present, as probability of present."""
    return logits.softmax(2)[..., 1] if logits.ndim == 3 else explained.predictions(logits)


@explainers.register("instance_head", paper="Zhang et al., CVPR 2022")
def instance_head() -> Explainer:
    """Each patch's probability by the model's own classifier of patches; for dtfd, clam and dsmil."""
    return InstanceHead()
