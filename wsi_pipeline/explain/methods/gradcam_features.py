"""Grad-CAM on the embedded patches: each patch's features, weighted by the target's mean gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..patch_embedding import embedded_leaf, embedding
from . import Explainer, explainers

_NEEDS = "has no layer that embeds each patch independently; this method needs one, as patch_embedding"


class GradCAMFeatures:
    """relu(sum_d w_d h_kd), w_d = mean over patches of dt/dh_kd, h the embedded patches.

    Unsigned ("attribution"); t is the target of the task, see ``explained_model``. Selvaraju et al., "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, with the slide as the image: a patch is
    a pixel of the last feature map, a unit of the embedding is a channel. For mean pooling it is CAM (Zhou et al., CVPR
    2016), the positive part of ``contribution``. A patch of low attention may still score high, as all patches share w.
    """

    unit: Unit = "attribution"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        return _NEEDS if embedding(explained.module) is None else None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        model, t = explained.module, explained.target(target)
        module = embedding(model)
        if module is None:
            raise ConfigError(f"the model {type(model).__name__} {_NEEDS}; leave it out of explain.methods")
        with frozen(model), torch.enable_grad(), embedded_leaf(module) as outputs:
            value = t(model(features, xy).logits)  # ()
            (embedded,) = outputs  # (N, hidden)
            (gradient,) = torch.autograd.grad(value, embedded)  # (N, hidden)
        return Attribution((embedded.detach() @ gradient.mean(0)).relu())  # (N,)


@explainers.register("gradcam_features", paper="Selvaraju et al., ICCV 2017")
def gradcam_features() -> Explainer:
    """Grad-CAM with patches as pixels and the embedding's units as channels; evidence for the class only."""
    return GradCAMFeatures()
