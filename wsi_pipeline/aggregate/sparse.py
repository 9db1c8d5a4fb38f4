"""Weights that sum to 1 and are exactly 0 for low scores: sparsemax and 1.5-entmax, as alternatives to softmax.

Both are twice differentiable through their threshold: the support (the entries above 0) is found without a gradient,
and the threshold is then a formula of its scores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sparsemax(scores: Tensor) -> Tensor:
    """Euclidean projection of each row on the simplex: max(z - t, 0) with the t for which they sum to 1.

    Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016.

    Parameters
    ----------
    scores : Tensor, (..., N)

    Returns
    -------
    Tensor, (..., N)
        float32, or float64 for float64 scores.
    """
    z = _shifted(scores)
    support = _support(z, _sparsemax_threshold)
    count = support.sum(-1, keepdim=True)
    threshold = ((z * support).sum(-1, keepdim=True) - 1) / count
    return (z - threshold).masked_fill(~support, 0).clamp(min=0).to(_result_type(scores))


def entmax15(scores: Tensor) -> Tensor:
    """max(z / 2 - t, 0)^2 of each row, with the t for which they sum to 1: between softmax and sparsemax.

    Alpha-entmax at alpha 1.5: the p on the simplex with the largest z · p + (4 / 3) sum_k (p_k - p_k^1.5). Peters,
    Niculae and Martins, "Sparse Sequence-to-Sequence Models", ACL 2019. Shapes and types as in ``sparsemax``.
    """
    z = _shifted(scores) / 2
    support = _support(z, _entmax15_threshold)
    count = support.sum(-1, keepdim=True)
    mean = (z * support).sum(-1, keepdim=True) / count
    spread = ((z - mean).square() * support).sum(-1, keepdim=True)
    threshold = mean - ((1 - spread) / count).sqrt()  # of (z_k - t)^2 over the support, which sum to 1
    return (z - threshold).masked_fill(~support, 0).clamp(min=0).square().to(_result_type(scores))


def _shifted(scores: Tensor) -> Tensor:
    """Scores less each row's largest, in double precision where the device has it, as thousands are summed."""
    working = torch.float32 if scores.device.type == "mps" else torch.float64
    z = scores.to(working)
    return z - z.detach().amax(-1, keepdim=True)


def _result_type(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)


@torch.no_grad()
def _support(z: Tensor, threshold: Callable[[Tensor], Tensor]) -> Tensor:
    """The support: which entries of z (..., N) are above the threshold, bool.

    ``threshold``: for each n, the threshold if the support were the n largest. The support is the largest n whose n-th
    entry is above its own threshold; it has at least one entry.
    """
    ordered = z.sort(-1, descending=True).values
    above = ordered > threshold(ordered.clamp(min=-2))  # (..., N) True, then False; no threshold is below -1
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
