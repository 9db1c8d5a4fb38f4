"""Run one model on one bag, identically in training, prediction and explanation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..types import FeatureBag, Float32, Float64, Int64
from . import MILOutput

GAP = 16.0  # strides between the slides of one bag: wider than any kernel over neighbouring patches


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Limit torch to ``count`` CPU threads: sums are split over threads, so their number changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fault(bag: FeatureBag) -> str:
    """Why a model cannot be run on ``bag``, as the end of a message; empty if it can."""
    if not len(bag.grid):
        return "holds no patch; look at the slide's tissue mask"
    broken = np.flatnonzero(~np.isfinite(bag.features).all(axis=1))
    if len(broken):
        return (
            f"has features that are not finite, first in row {broken[0]} of {len(bag.grid)}; delete it and embed "
            f"again, with embed.precision=fp32 or embed.dtype=float32 if they overflowed"
        )
    return ""


def bag_tensors(
    bag: FeatureBag | Sequence[FeatureBag], device: torch.device | str = "cpu", rows: Int64 | None = None
) -> tuple[Tensor, Tensor]:
    """Input of a model for one bag.

    Parameters
    ----------
    bag : FeatureBag or sequence of FeatureBag
        Several slides become one bag, side by side, ``GAP`` strides apart.
    device : torch.device or str
    rows : int64 array (n,), optional
        Ascending indices of the patches; by default all.

    Returns
    -------
    features : Tensor, (n, D)
        In the stored type; cast them with ``.float()``.
    xy : Tensor, (n, 2)
        float32 positions in units of the patch stride.
    """
    bags = [bag] if isinstance(bag, FeatureBag) else bag
    features, xy = bags[0].features, bags[0].grid.xy_stride
    if len(bags) > 1:
        features = np.concatenate([b.features for b in bags])
        xy = side_by_side([b.grid.xy_stride for b in bags])
    if rows is not None:
        features, xy = features[rows], xy[rows]
    return torch.from_numpy(features).to(device), torch.from_numpy(xy).to(device)


def side_by_side(positions: Sequence[Float32]) -> Float32:
    """Place several slides' positions (n_i, 2) on one plane (n, 2), left to right, too far apart to be neighbours."""
    placed, left = [], 0.0
    for xy in positions:
        placed.append(xy - xy.min(0) + np.array([left, 0], np.float32))
        left = float(placed[-1][:, 0].max()) + GAP
    return np.concatenate(placed).astype(np.float32)


def bag_output(model: nn.Module, bag: FeatureBag | Sequence[FeatureBag], device: torch.device | str) -> MILOutput:
    """Run ``model``, which is on ``device``, on the whole bag, in its current mode and without gradients."""
    features, xy = bag_tensors(bag, device)
    with torch.inference_mode():
        output: MILOutput = model(features.float(), xy)
    return output


def logits_of(output: MILOutput) -> Float64:
    """Logits (C,) in double precision."""
    values: Float64 = np.asarray(output.logits.detach().double().cpu().numpy(), np.float64)
    return values


def probabilities(logits: Tensor) -> Float64:
    """Softmax of logits (C,), in double precision."""
    values: Float64 = np.asarray(logits.detach().double().softmax(0).cpu().numpy(), np.float64)
    return values
