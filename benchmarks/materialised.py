"""Explanations of TransMIL with whole attention maps, by definition: the reference of benchmarks/explain.py.

Each layer's map (H, P, P) and its gradient are stored, and rollouts multiply P x P matrices. Scores are those of the
streamed methods in ``wsi_pipeline.explain`` for the patches, the class token and the padding together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_pipeline.aggregate.nystrom import iterated_pinv, landmark_means
from wsi_pipeline.aggregate.transmil import TransLayer, TransMIL
from wsi_pipeline.explain.logit_contrast import contrast


@dataclass(frozen=True, eq=False)
class Maps:
    """Both layers' attention (H, P, P), part of the graph, and the explained output () computed from them."""

    first: Tensor
    last: Tensor
    padding: int
    output: Tensor

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.output, [self.first, self.last])


def whole_maps(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Maps:
    """The model's forward pass with its attention maps in memory."""
    first, tokens = _layer(model.layer1, model._sequence(features))
    encoded = model.pos_layer.on_grid(tokens[1:], xy) if model.grid else model.pos_layer.on_square(tokens[1:])
    last, tokens = _layer(model.layer2, torch.cat([tokens[:1], encoded]))
    output = contrast(model._fc2(model.norm(tokens[0])), target)
    return Maps(first, last, model.layer1.attn.padding(len(tokens)), output)


def rollout(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    """Class row of the product of (A + I)/2, A the mean over heads, (P,)."""
    with torch.no_grad():
        maps = whole_maps(model, features, xy, target)
        first, last = (_mean(found, maps.padding) for found in (maps.first, maps.last))
        identity = torch.eye(len(first), dtype=first.dtype)
        row: Tensor = ((last + identity) / 2 @ ((first + identity) / 2))[maps.padding]
    return row


def gradcam_attention(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    """relu of the last map's class row times its mean gradient, mean over heads, (P,)."""
    maps = whole_maps(model, features, xy, target)
    (gradient,) = torch.autograd.grad(maps.output, maps.last)
    at = maps.padding
    weight = gradient[:, at].mean(1, keepdim=True)  # (H, 1)
    return (maps.last[:, at].detach() * weight).mean(0).relu()


def generic_attribution(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    """Class row of R after R <- R + mean_h relu(dA * A) R in both layers, (P,)."""
    maps = whole_maps(model, features, xy, target)
    relevance = torch.eye(maps.first.shape[1], dtype=maps.first.dtype)
    for found, gradient in zip((maps.first, maps.last), maps.gradients(), strict=True):
        relevance = relevance + (found.detach() * gradient).relu().mean(0) @ relevance
    return relevance[maps.padding]


MATERIALISED = {"rollout": rollout, "gradcam_attention": gradcam_attention, "generic_attribution": generic_attribution}


def _layer(layer: TransLayer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's attention map (H, P, P) and its output (T, dim)."""
    attention = layer.attn
    padded = attention.padded(layer.norm(tokens))
    parts = attention.to_qkv(padded).chunk(3, 1)
    queries, keys, values = (part.unflatten(1, (attention.heads, -1)).transpose(0, 1) for part in parts)  # (H, P, d)
    queries = queries * queries.shape[2] ** -0.5
    if attention.exact:
        found = (queries @ keys.mT).softmax(2)
    else:
        of_queries, of_keys = (landmark_means(x, attention.landmarks) for x in (queries, keys))
        inverse = iterated_pinv((of_queries @ of_keys.mT).softmax(2), attention.pinv_iterations)
        found = (queries @ of_keys.mT).softmax(2) @ (inverse @ (of_queries @ keys.mT).softmax(2))
    mixed = (found @ values + attention.res_conv(values[None])[0]).transpose(0, 1).flatten(1)
    given: Tensor = tokens + attention.to_out(mixed[-len(tokens) :])
    return found, given


def _mean(found: Tensor, padding: int) -> Tensor:
    """Mean over heads (P, P); zero padding, which corresponds to no token, attends to itself."""
    mean = found.mean(0)
    mean[:padding] = torch.eye(len(mean), dtype=mean.dtype)[:padding]
    return mean
