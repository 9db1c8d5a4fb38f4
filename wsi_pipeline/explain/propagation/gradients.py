"""The gradient of what is explained with respect to the patches' features, and the methods that are its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...types import Unit
from ..explained_model import Attribution, ExplainedModel, Target
from ..frozen import frozen


def gradient(model: nn.Module, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """dt/dx (N, D), t the target: one forward and one backward pass, in the features' precision."""
    leaf = features.detach().requires_grad_()
    with frozen(model), torch.enable_grad():
        value = target(model(leaf, xy).logits)  # ()
        (slopes,) = torch.autograd.grad(value, leaf)
    return slopes


@dataclass(frozen=True)
class GradientSize:
    """How much the answer moves with each patch, whichever way; for every model that has gradients.

    Says how sensitive the answer is to a patch, not what the patch says: evidence for and against look alike.
    """

    size: Callable[[Tensor], Tensor]  # of slopes dt/dx, (N, D) -> (N,)

    unit: ClassVar[Unit] = "attribution"
    signed: ClassVar[bool] = False
    class_specific: ClassVar[bool] = True

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        slopes = gradient(explained.module, features, xy, explained.target(target))  # (N, D)
        return Attribution(self.size(slopes))
