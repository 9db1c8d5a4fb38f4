"""Guided backpropagation: the gradient along paths that are positive at every ReLU."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ...types import Unit
from ..explained_model import Attribution, ExplainedModel, Target
from ..frozen import frozen
from ..propagation.traced_tensor import NoRuleError, misfit_on_small_bag
from . import Explainer, explainers


class GuidedBackprop:
    """Sum over d of |g_kd|, g the gradient dt/dx whose negative values are set to zero at every ReLU.

    Unsigned ("attribution"); t is the target of the task, see ``explained_model``. Springenberg et al., "Striving for
    Simplicity: The All Convolutional Net", ICLR workshop 2015 (https://arxiv.org/abs/1412.6806), by ``captum``, which
    hooks nn.ReLU modules. They show g itself as an image; a patch's features are not an image, so their magnitudes are
    summed, as in ``saliency``. Attention, gates and LayerNorm have their ordinary gradient. Adebayo et al., "Sanity
    Checks for Saliency Maps", NeurIPS 2018, find that on images the result hardly depends on the later layers and
    resembles the output of an edge detector.

    A ReLU that a model calls as a function cannot be hooked, and a map that is guided at some ReLUs and not at others
    would be neither this method nor a gradient: such models do not fit.
    """

    unit: Unit = "attribution"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        return misfit_on_small_bag(lambda features, xy: check_relus(explained.module, features, xy), explained.module)

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        if reason := self.fits(explained):
            raise NoRuleError(reason)
        guided = guided_gradient(explained.module, features, xy, explained.target(target))  # (N, D)
        return Attribution(guided.abs().sum(1))


class TargetModule(nn.Module):
    """t of one bag, in the shapes that ``captum`` needs: (1, N, D) -> (1,)."""

    def __init__(self, model: nn.Module, xy: Tensor, target: Target) -> None:
        super().__init__()
        self.model, self.xy, self.target = model, xy, target

    def forward(self, bag: Tensor) -> Tensor:
        return self.target(self.model(bag[0], self.xy).logits)[None]


def guided_gradient(model: nn.Module, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """(N, D): one forward and one backward pass, in the features' precision."""
    from captum.attr import GuidedBackprop as CaptumGuidedBackprop

    with frozen(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")  # captum removes them at the end
        bag = features.detach()[None].requires_grad_()  # (1, N, D)
        gradient: Tensor = CaptumGuidedBackprop(TargetModule(model, xy, target)).attribute(bag)
    return gradient[0]


def check_relus(model: nn.Module, features: Tensor, xy: Tensor) -> None:
    """Raise ``NoRuleError`` if the logits depend on no ReLU, or on one that is not a module."""
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
    relus = count_relus(logits)
    if relus > len(called):
        raise NoRuleError("calls ReLU as a function, which cannot be hooked; this method needs modules, nn.ReLU")
    if not relus:
        raise NoRuleError("has no ReLU on the way to its logits; this method needs some, as modules, nn.ReLU")


def count_relus(value: Tensor) -> int:
    """Number of ReLUs in the autograd graph of ``value``."""
    visited, queue = set(), [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in visited:
            visited.add(node)
            queue += [earlier for earlier, _ in node.next_functions]
    return sum(node.name() == "ReluBackward0" for node in visited)


@explainers.register("guided_backprop", paper="Springenberg et al., ICLR workshop 2015")
def guided_backprop() -> Explainer:
    """Magnitude of the gradient along paths that are positive at every ReLU; for models whose ReLUs are modules."""
    return GuidedBackprop()
