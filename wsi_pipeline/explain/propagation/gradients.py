"""Gradient of the target with respect to the patches' features, and the methods that are its magnitude."""

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
    """Gradient dt/dx of the target t.

    Parameters
    ----------
    model : nn.Module
    features : Tensor, (N, D)
    xy : Tensor, (N, 2)
        Positions in units of the patch stride.
    target : Target

    Returns
    -------
    Tensor, (N, D)
        From one forward and one backward pass, in the features' precision.
    """
    leaf = features.detach().requires_grad_()
    with frozen(model), torch.enable_grad():
        value = target(model(leaf, xy).logits)  # ()
        (found,) = torch.autograd.grad(value, leaf)
    return found


@dataclass(frozen=True)
class GradientMagnitude:
    """Magnitude of the gradient dt/dx_k of each patch, t the target (see ``explained_model``); fits every model.

    It shows how sensitive t is to a patch, not in which direction: evidence for and against look alike.
    """

    magnitude: Callable[[Tensor], Tensor]  # of gradients dt/dx, (N, D) -> (N,)

    unit: ClassVar[Unit] = "attribution"
    signed: ClassVar[bool] = False
    class_specific: ClassVar[bool] = True

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        found = gradient(explained.module, features, xy, explained.target(target))  # (N, D)
        return Attribution(self.magnitude(found))
