"""Logits of every prefix of a bag, in one pass, for models that are a weighted mean of their patches.

logits_c = b_c + sum_k exp(s_kc) v_kc / sum_k exp(s_kc). A patch that is left out only changes the two sums, so the bag
without its first 1, 2, 3 … patches costs no further forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...aggregate import WeightedMean


def prefix_logits(
    found: WeightedMean, order: Tensor, sizes: Sequence[int], absent: WeightedMean | None = None
) -> Tensor:
    """Logits (P, C) of the bags of the first n patches of ``order`` (N,), n in ascending ``sizes`` (P).

    ``absent``: the parts of one patch that stands in for each of those left out; None: they are gone, and n > 0.
    Running means, so that neither large weights nor their cancelling cost digits.
    """
    log_weights, values = found.log_weights[order], found.values[order]
    state = log_weights.new_full(log_weights.shape[1:], -torch.inf), torch.zeros_like(values[0])
    rows, start = [], 0
    for size in sizes:
        if size > start:
            part = log_weights[start:size]  # (n, 1) or (n, C)
            state = _merge(state, part.logsumexp(0), (part.softmax(0) * values[start:size]).sum(0))
            start = size
        mean = state[1]
        if absent is not None and size < len(order):
            copies = absent.log_weights[0] + math.log(len(order) - size)
            _, mean = _merge(state, copies, absent.values[0])
        rows.append(found.bias + mean)
    return torch.stack(rows)


def _merge(state: tuple[Tensor, Tensor], log_weight: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the whole weight, and the weighted mean, with one more part."""
    total = torch.logaddexp(state[0], log_weight)
    return total, state[1] + (mean - state[1]) * (log_weight - total).exp()
