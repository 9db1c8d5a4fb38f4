"""One bag through one model, the same way in training, prediction and explanation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..types import FeatureBag, Float32, Float64, Int64
from . import MILOutput

GAP = 16.0  # strides between the slides of one bag: wider than any kernel that looks at neighbours


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside: sums are split by threads, so their number decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fault(bag: FeatureBag) -> str:
    """Why no model can say anything of ``bag``, as the end of a message; empty where all is well."""
    if not len(bag.grid):
        return "holds no patch; look at the slide's tissue mask"
    broken = np.flatnonzero(~np.isfinite(bag.features).all(axis=1))
    if len(broken):
        return (
            f"has features that are no numbers, first in row {broken[0]} of {len(bag.grid)}; delete it and embed "
            f"again, with embed.precision=fp32 or embed.dtype=float32 if they overflowed"
        )
    return ""


def bag_tensors(
    bag: FeatureBag | Sequence[FeatureBag], device: torch.device | str = "cpu", rows: Int64 | None = None
) -> tuple[Tensor, Tensor]:
    """What a model is given: features (n, D) as stored (cast them with ``.float()``) and positions (n, 2) float32.

    Positions are in units of the patch stride. Several slides make one bag side by side, ``GAP`` strides apart.
    ``rows``: ascending indices of the patches; None: all N.
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
    """Positions (n_i, 2) of several slides on one plane (n, 2), left to right; slides are no neighbours."""
    placed, left = [], 0.0
    for xy in positions:
        placed.append(xy - xy.min(0) + np.array([left, 0], np.float32))
        left = float(placed[-1][:, 0].max()) + GAP
    return np.concatenate(placed).astype(np.float32)


def bag_output(model: nn.Module, bag: FeatureBag | Sequence[FeatureBag], device: torch.device | str) -> MILOutput:
    """What ``model``, as it stands on ``device``, says of the whole bag. No gradients."""
    features, xy = bag_tensors(bag, device)
    with torch.inference_mode():
        output: MILOutput = model(features.float(), xy)
    return output


def logits_of(output: MILOutput) -> Float64:
    """The logits (C,) in double precision."""
    values: Float64 = np.asarray(output.logits.detach().double().cpu().numpy(), np.float64)
    return values


def probabilities(logits: Tensor) -> Float64:
    """Softmax of logits (C,), in double precision."""
    values: Float64 = np.asarray(logits.detach().double().softmax(0).cpu().numpy(), np.float64)
    return values
