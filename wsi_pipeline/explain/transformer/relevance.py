"""Relevance inside TransMIL by the rules of Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention
Visualization", CVPR 2021: layer-wise relevance propagation from the contrast, whose relevance is 1, downwards.

Linear maps and convolutions share by positive products only (z+), biases take nothing; LayerNorm lets relevance pass;
a sum a + b shares R/(a + b) and is then normalised so that neither part exceeds the whole; O = A V gives half to A.
A rule gives coefficients c, with R = x c, wherever x itself could be zero: the relevance of A[i, j] is
A[i, j] <c_i, V_j> / 2, summed over channels, with c = R_O / O.

Deviation: below a layer the half of A goes on with the values (attention held constant, as Ali et al., "XAI for
Transformers: Better Explanations through Conservative Propagation", ICML 2022, argue for). Through softmax, queries and
keys the published way divides by scores near zero, and Nystrom's product has no such scores. All is conserved so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...aggregate.nystrom import TAPS
from ...aggregate.ppeg import PPEG
from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from .trace import Layer, Trace


@dataclass(frozen=True, eq=False)
class LastRelevance:
    """Where the contrast's relevance of 1 is in the last layer, all on the class token."""

    skipped: Tensor  # (dim,) relevance that passes the layer by
    attended: Tensor  # (H, d) coefficients of O = A V
    convolved: Tensor  # (dim,) coefficients of the convolved values


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: nothing is there to take it."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


def linear_rule(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Coefficients of x (..., i) when ``weight`` (o, i) gives outputs of ``relevance`` (..., o)."""
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    shares = ratio(relevance, F.linear(x.clamp(min=0), positive) + F.linear(x.clamp(max=0), negative))
    return torch.where(x > 0, shares @ positive, shares @ negative)


def sum_rule(a: Tensor, b: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of a and of b when their sum has relevance (a + b) ``coefficients``."""
    parts = [(a * coefficients).sum(), (b * coefficients).sum()]
    whole = parts[0] + parts[1]
    size = parts[0].abs() + parts[1].abs()
    first, second = (coefficients * ratio(part.sign() * whole, size) for part in parts)
    return first, second


def last_relevance(model: TransMIL, seen: Trace, target: Target) -> LastRelevance:
    """From the contrast down to the last layer's class token."""
    layer = seen.last
    read = model.norm(seen.class_token)  # (dim,)
    weight = target(model.head.weight.mT)[None]  # (1, dim) the contrast is one linear unit
    relevance = read * linear_rule(read, weight, read.new_ones(1))  # (dim,)
    skip, branch = layer.tokens[0], layer.attention.to_out(layer.mixed)
    skipping, through = sum_rule(skip, branch, ratio(relevance, skip + branch))
    into = linear_rule(layer.mixed, layer.output_weight(), branch * through)  # (dim,)
    convolved = class_convolution(layer)
    attended, nearby = sum_rule(layer.mixed - convolved, convolved, into)
    return LastRelevance(skip * skipping, attended.unflatten(0, (layer.attention.heads, -1)), nearby)


def first_relevance(model: TransMIL, seen: Trace, last: LastRelevance) -> Tensor:
    """From the last layer down to the first: coefficients of its O = A V, (H, T, d)."""
    layer = seen.first
    relevance = below_last(seen.last, last)  # (T, dim) of what PPEG gave
    branch = layer.attention.to_out(layer.mixed)
    given = layer.tokens + branch  # (T, dim) what PPEG was given
    relevance = torch.cat([relevance[:1], below_ppeg(model, given[1:], seen.xy, relevance[1:])])
    _, through = sum_rule(layer.tokens, branch, ratio(relevance, given))
    into = linear_rule(layer.mixed, layer.output_weight(), branch * through)  # (T, dim)
    convolved = layer.attention.convolve_values(F.linear(layer.padded(), layer.value_weight()))[layer.padding :]
    attended, _ = sum_rule(layer.mixed - convolved, convolved, into)
    return layer.attention.split_heads(attended)[0]


def class_convolution(layer: Layer) -> Tensor:
    """The convolved values at the class token, (dim,)."""
    return _nearby_products(layer).sum(0)


def _nearby_products(layer: Layer) -> Tensor:
    """Tap times value of each token within the class token's reach, (up to 17, dim); in front stand zeros only."""
    nearby = F.linear(layer.normed[: TAPS // 2 + 1], layer.value_weight())  # (n, dim)
    taps = layer.attention.res_conv.weight[:, 0, TAPS // 2 :, 0][:, : len(nearby)]  # (H, n)
    return nearby * taps.repeat_interleave(nearby.shape[1] // len(taps), 0).mT


def below_last(layer: Layer, last: LastRelevance) -> Tensor:
    """Relevance (T, dim) of the last layer's tokens: through the values, and of the class token past the layer."""
    weights = layer.class_row[:, layer.padding :]  # (H, T)
    values = F.linear(layer.normed, layer.value_weight())  # (T, dim)
    relevance = values * (weights.mT[:, :, None] * last.attended).flatten(1)
    products = _nearby_products(layer)
    positive = products.clamp(min=0)  # (n, dim)
    relevance[: len(positive)] += positive * ratio(products.sum(0) * last.convolved, positive.sum(0))
    relevance = layer.normed * linear_rule(layer.normed, layer.value_weight(), relevance)
    relevance[0] += last.skipped
    return relevance


def below_ppeg(model: TransMIL, tokens: Tensor, xy: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of the patches' tokens (S, dim) that PPEG was given, from that of what it gave."""

    def around(layer: PPEG, tokens: Tensor) -> Tensor:
        return (layer.on_grid(tokens, xy) if model.grid else layer.on_square(tokens)) - tokens

    seen = around(model.pos_layer, tokens)
    skipping, through = sum_rule(tokens, seen, ratio(relevance, tokens + seen))
    kernel, _ = model.pos_layer.summed_kernel()
    parts = tokens.clamp(min=0).requires_grad_(), tokens.clamp(max=0).requires_grad_()
    layers = with_kernel(model.pos_layer, kernel.clamp(min=0)), with_kernel(model.pos_layer, kernel.clamp(max=0))
    with torch.enable_grad():
        positive = around(layers[0], parts[0]) + around(layers[1], parts[1])
        shares = torch.autograd.grad(positive, parts, ratio(seen * through, positive.detach()))
    return tokens * skipping + parts[0].detach() * shares[0] + parts[1].detach() * shares[1]


def with_kernel(layer: PPEG, kernel: Tensor) -> PPEG:
    """PPEG with this one kernel (dim, 1, 7, 7) and no bias."""
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter.zero_()
    other.proj.weight.copy_(kernel)
    return other
