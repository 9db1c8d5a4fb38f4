"""Models whose logits are a softmax-weighted mean of their patches: the closed form, after the statement is checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..aggregate import HasWeightedMean, WeightedMean
from .frozen import frozen
from .propagation.traced_tensor import small_bag

_TOLERANCE = 1e-4


def weighted_mean(model: nn.Module, features: Tensor, xy: Tensor) -> WeightedMean | None:
    """Parts of the mean for one bag.

    Parameters
    ----------
    model : nn.Module
    features : Tensor, (N, D)
    xy : Tensor, (N, 2)
        Positions in units of the patch stride.

    Returns
    -------
    WeightedMean or None
        In double precision on the CPU. None where the model states no parts, or where they do not give its logits, as
        for a subclass that changes the forward pass and inherits ``weighted_mean``.
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
    """Whether the logits of ``model`` are such a mean, tried on a small bag."""
    bag = small_bag(model)
    if bag is None:
        return isinstance(model, HasWeightedMean)
    ones, xy = bag
    patches = ones * torch.arange(1, 3, dtype=ones.dtype, device=ones.device)[:, None]  # two that differ
    patches[:, ::2] *= -1
    try:
        return weighted_mean(model, patches, xy) is not None
    except RuntimeError:  # its first linear layer is not the one that takes the features: the bag decides
        return isinstance(model, HasWeightedMean)
