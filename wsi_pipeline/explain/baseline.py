"""What a patch is where it is taken away but its place is kept."""

from __future__ import annotations

from torch import Tensor

BASELINES = ("zero", "mean")


def baseline_row(features: Tensor, kind: str) -> Tensor:
    """(1, D) in place of each patch of ``features`` (N, D): "zero", or "mean", the mean of the bag."""
    mean = features.detach().mean(0, keepdim=True)
    return mean if kind == "mean" else mean.new_zeros(mean.shape)
