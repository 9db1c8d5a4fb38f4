"""Guided backpropagation: the gradient on the ways that speak for the class at every ReLU."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ...types import Unit
from ..explained_model import Attribution, ExplainedModel, Target
from ..frozen import frozen
from ..propagation.traced_tensor import NoRuleError, trial
from . import Explainer, explainers


class GuidedBackprop:
    """Sum over d of |g_kd|, g the gradient of t, the contrast, of which a ReLU lets nothing below zero back.

    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015
    (https://arxiv.org/abs/1412.6806), by ``captum``, which hooks nn.ReLU modules. They show g itself, as a picture;
    a patch's features are no picture, so their sizes are added up, as in ``saliency``: how much t moves with a patch
    on the ways that raise it. Attention, gates and LayerNorm have their own gradient. Adebayo et al., "Sanity Checks
    for Saliency Maps", NeurIPS 2018, find that on images it hardly depends on the layers behind, and looks like what
    an edge detector gives.

    A ReLU that a model calls as a function cannot be hooked, and a map that is guided at some ReLUs and not at others
    would be neither this method nor a gradient: such models do not fit.
    """

    unit: Unit = "attribution"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        return trial(lambda features, xy: check_relus(explained.module, features, xy), explained.module)

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        if reason := self.fits(explained):
            raise NoRuleError(reason)
        guided = guided_gradient(explained.module, features, xy, explained.target(target))  # (N, D)
        return Attribution(guided.abs().sum(1))


class Answer(nn.Module):
    """t of one bag, as ``captum`` asks for it: (1, N, D) -> (1,)."""

    def __init__(self, model: nn.Module, xy: Tensor, target: Target) -> None:
        super().__init__()
        self.model, self.xy, self.target = model, xy, target

    def forward(self, bag: Tensor) -> Tensor:
        return self.target(self.model(bag[0], self.xy).logits)[None]


def guided_gradient(model: nn.Module, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """(N, D): one forward and one backward pass, in the features' precision."""
    from captum.attr import GuidedBackprop as CaptumGuidedBackprop

    with frozen(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")  # gone again at the end
        bag = features.detach()[None].requires_grad_()  # (1, N, D)
        gradient: Tensor = CaptumGuidedBackprop(Answer(model, xy, target)).attribute(bag)
    return gradient[0]


def check_relus(model: nn.Module, features: Tensor, xy: Tensor) -> None:
    """Raises ``NoRuleError`` where the logits rest on no ReLU, or on one that is no module."""
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _, __: called.append(module))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        with frozen(model), torch.enable_grad():
            logits = model(features.detach().requires_grad_(), xy).logits
    finally:
        for hook in hooks:
            hook.remove()
    relus = relus_behind(logits)
    if relus > len(called):
        raise NoRuleError("calls ReLU as a function, which cannot be hooked; this method needs modules, nn.ReLU")
    if not relus:
        raise NoRuleError("has no ReLU on the way to its logits; this method needs some, as modules, nn.ReLU")


def relus_behind(value: Tensor) -> int:
    """How many ReLUs stand in the graph of ``value``."""
    seen, open_ = set(), [value.grad_fn]
    while open_:
        node = open_.pop()
        if node is not None and node not in seen:
            seen.add(node)
            open_ += [behind for behind, _ in node.next_functions]
    return sum(node.name() == "ReluBackward0" for node in seen)


@explainers.register("guided_backprop", paper="Springenberg et al., ICLR workshop 2015")
def guided_backprop() -> Explainer:
    """Size of the gradient on the ways that raise the answer at every ReLU; for models whose ReLUs are modules."""
    return GuidedBackprop()
