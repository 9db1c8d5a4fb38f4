"""Models whose logits are a softmax-weighted mean of their patches: their exact path, once the claim is checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..aggregate import HasWeightedMean, WeightedMean
from .frozen import frozen
from .propagation.traced_tensor import small_bag

_TOLERANCE = 1e-4


def weighted_mean(model: nn.Module, features: Tensor, xy: Tensor) -> WeightedMean | None:
    """The parts of the mean for ``features`` (N, D) at ``xy`` (N, 2), in double precision on the CPU.

    None where the model states none, or where what it states is not what it computes, as of a subclass that changes
    the forward pass and inherits the statement.
    """
    if not isinstance(model, HasWeightedMean):
        return None
    with frozen(model), torch.no_grad():
        parts = model.weighted_mean(features, xy)
        logits = model(features, xy).logits
    if parts is None:
        return None
    found = WeightedMean(*(part.detach().cpu().double() for part in parts))
    mean = found.bias + (found.log_weights.softmax(0) * found.values).sum(0)  # (C,)
    return found if torch.allclose(mean, logits.cpu().double(), rtol=_TOLERANCE, atol=_TOLERANCE) else None


def is_weighted_mean(model: nn.Module) -> bool:
    """Whether ``model`` has the form, tried on a small bag."""
    bag = small_bag(model)
    if bag is None:
        return isinstance(model, HasWeightedMean)
    ones, xy = bag
    patches = ones * torch.arange(1, 3, dtype=ones.dtype, device=ones.device)[:, None]  # two that differ
    patches[:, ::2] *= -1
    return weighted_mean(model, patches, xy) is not None
