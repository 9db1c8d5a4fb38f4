"""Weights that sum to 1 and are exactly 0 where the score is low: sparsemax and 1.5-entmax, in place of softmax.

Both are differentiable, twice, through their threshold: which entries are not 0 is found without a gradient, the
threshold is then a formula of those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the simplex that is nearest to ``scores`` (..., N), row by row: max(z - t, 0), which sum to 1.

    Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016. Returns float32 at least.
    """
    z = _shifted(scores)
    support = _first(z, _sparsemax_threshold)
    count = support.sum(-1, keepdim=True)
    threshold = ((z * support).sum(-1, keepdim=True) - 1) / count
    return (z - threshold).masked_fill(~support, 0).clamp(min=0).to(_kept(scores))


def entmax15(scores: Tensor) -> Tensor:
    """max(z / 2 - t, 0)^2 of ``scores`` z (..., N), row by row, t such that they sum to 1: between softmax, sparsemax.

    Alpha-entmax at alpha 1.5: the p on the simplex with the largest z · p + (4 / 3) sum_k (p_k - p_k^1.5). Peters,
    Niculae and Martins, "Sparse Sequence-to-Sequence Models", ACL 2019. Returns float32 at least.
    """
    z = _shifted(scores) / 2
    support = _first(z, _entmax15_threshold)
    count = support.sum(-1, keepdim=True)
    mean = (z * support).sum(-1, keepdim=True) / count
    spread = ((z - mean).square() * support).sum(-1, keepdim=True)
    threshold = mean - ((1 - spread) / count).sqrt()  # of (z_k - t)^2 over the support, which sum to 1
    return (z - threshold).masked_fill(~support, 0).clamp(min=0).square().to(_kept(scores))


def _shifted(scores: Tensor) -> Tensor:
    """Scores minus each row's largest, in double precision where the device has it: thousands are summed."""
    working = torch.float32 if scores.device.type == "mps" else torch.float64
    z = scores.to(working)
    return z - z.detach().amax(-1, keepdim=True)


def _kept(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)


@torch.no_grad()
def _first(z: Tensor, threshold: Callable[[Tensor], Tensor]) -> Tensor:
    """Which entries of z (..., N) are above the threshold, bool.

    ``threshold``: for each n, what it would be if the n largest were those. The support is the largest n whose n-th
    entry is above its own; it has one entry at least.
    """
    ordered = z.sort(-1, descending=True).values
    above = ordered > threshold(ordered.clamp(min=-2))  # (..., N) true, then false; no threshold is below -1
    size = above.sum(-1, keepdim=True).clamp(min=1)
    return z >= ordered.gather(-1, size - 1)


def _sparsemax_threshold(ordered: Tensor) -> Tensor:
    return (ordered.cumsum(-1) - 1) / _counts(ordered)


def _entmax15_threshold(ordered: Tensor) -> Tensor:
    counts = _counts(ordered)
    mean = ordered.cumsum(-1) / counts
    variance = (ordered.square().cumsum(-1) / counts - mean.square()).clamp(min=0)
    return mean - (1 / counts - variance).clamp(min=0).sqrt()


def _counts(ordered: Tensor) -> Tensor:
    return torch.arange(1, ordered.shape[-1] + 1, dtype=ordered.dtype, device=ordered.device)
