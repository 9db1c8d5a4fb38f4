"""The gradient of what is explained with respect to the patches' features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .frozen import frozen
from .target import contrast


def gradient(model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Tensor:
    """dt/dx (N, D), t the contrast: one forward and one backward pass, in the features' precision."""
    leaf = features.detach().requires_grad_()
    with frozen(model), torch.enable_grad():
        value = contrast(model(leaf, xy).logits, target)  # ()
        (slopes,) = torch.autograd.grad(value, leaf)
    return slopes
