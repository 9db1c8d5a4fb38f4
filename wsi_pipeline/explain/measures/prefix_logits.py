"""Models that are a weighted mean of their patches: what they say of every prefix of a bag, in one pass.

logits_c = b_c + sum_k exp(s_kc) v_kc / sum_k exp(s_kc). A patch that is left out only changes the two sums, so the bag
without its first 1, 2, 3 … patches costs no further forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...aggregate.abmil import AttentionMIL
from ...aggregate.clam import CLAM
from ...aggregate.mean import MeanPooling


class Pooled(NamedTuple):
    """The parts of such a model for one bag, in double precision, on the CPU."""

    log_weights: Tensor  # s, (N, 1), or (N, C) where each class has its own
    values: Tensor  # v, (N, C)
    bias: Tensor  # b, (C,)


def pooled(model: nn.Module, features: Tensor) -> Pooled | None:
    """The parts of ``model``, in eval mode, for ``features`` (N, D); None where it is no such model.

    PerturbationModel by exact type: a subclass may weigh its patches in another way, as sparse attention does.
    """
    if type(model) is AttentionMIL:
        embedded = model.embed(features)
        hints = model.attend(embedded)
        hints = hints if model.gate is None else hints * model.gate(embedded)
        return _double(model.score(hints), embedded @ model.classify.weight.T, model.classify.bias)
    if type(model) is CLAM:
        embedded = model.attention_net[:3](features)
        return _double(model.attention_net[3](embedded), embedded @ model._weight().T, model.bias())
    if type(model) is MeanPooling:
        values = model.embed(features) @ model.classify.weight.T
        return _double(torch.zeros_like(values[:, :1]), values, model.classify.bias)
    return None


def _double(log_weights: Tensor, values: Tensor, bias: Tensor) -> Pooled:
    return Pooled(*(part.detach().cpu().double() for part in (log_weights, values, bias)))


def prefix_logits(found: Pooled, order: Tensor, sizes: Sequence[int], absent: Pooled | None = None) -> Tensor:
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
