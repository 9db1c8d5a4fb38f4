"""Features that replace a patch which is removed but whose position is kept."""

from __future__ import annotations

from torch import Tensor

BASELINES = ("zero", "mean")


def baseline_row(features: Tensor, kind: str) -> Tensor:
    """Row (1, D) that replaces patches of ``features`` (N, D): "zero", or "mean", the mean of the bag."""
    mean = features.detach().mean(0, keepdim=True)
    return mean if kind == "mean" else mean.new_zeros(mean.shape)
