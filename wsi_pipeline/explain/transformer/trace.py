"""Values inside TransMIL on one bag, and the gradient of the target with respect to the attention's output.

Hooks record the trace during the model's own forward pass. Gradients start from the trace and use the model's own later
modules, so that nothing before it is computed again or kept. As O = A V enters ``mixed`` as a summand, dt/dO is
dt/dmixed, and the gradient of the attention map is dt/dA[i, j] = <dt/dO_i, V_j>: no map is needed. t is the target of
the task, see ``explained_model``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...aggregate.nystrom import TokenAttention
from ...aggregate.transmil import TransLayer, TransMIL
from ..explained_model import Target


@dataclass(frozen=True, eq=False)
class Layer:
    """Recorded values of one attention layer. Frame of a map's columns: P = padding + T, as in ``nystrom``."""

    attention: TokenAttention
    tokens: Tensor  # (T, dim) input of the layer
    normed: Tensor  # (T, dim) the same after LayerNorm
    mixed: Tensor  # input of the output projection: (T, dim), in the last layer the class token's (dim,)

    @property
    def padding(self) -> int:
        """Number of zero keys in front of the tokens."""
        return self.attention.padding(len(self.tokens))

    def padded(self) -> Tensor:
        """Normalised tokens with padding in front, from which keys and values are computed, (P, dim)."""
        return self.attention.padded(self.normed)

    def values(self) -> Tensor:
        """Values, (H, P, d)."""
        return self.attention.split_heads(F.linear(self.padded(), self.value_weight()))[0]

    def value_weight(self) -> Tensor:
        """Weight of the value projection, (dim, dim)."""
        return self.attention.to_qkv.weight.chunk(3)[2]

    def output_weight(self) -> Tensor:
        """Weight of the output projection, (dim, dim)."""
        return self.attention.to_out.get_parameter("0.weight")

    @cached_property
    def class_row(self) -> Tensor:
        """The class token's row of each head's attention map, (H, P)."""
        return self.attention.first_row(self.normed[:1], self.padded())

    def times_values(self, vectors: Tensor) -> Tensor:
        """<vectors_h, V_hj> for one vector per head, (H, d) -> (H, P), without computing the values."""
        weight = self.value_weight().unflatten(0, vectors.shape)  # (H, d, dim)
        products: Tensor = (vectors[:, None] @ weight)[:, 0] @ self.padded().mT
        return products


@dataclass(frozen=True, eq=False)
class Trace:
    """Both attention layers of one forward pass, and the class token (dim,) after them."""

    first: Layer
    last: Layer
    class_token: Tensor
    xy: Tensor  # (N, 2)


def trace(model: TransMIL, features: Tensor, xy: Tensor) -> Trace:
    """Record the model's own forward pass, without gradient; the model is in eval mode."""
    recorded: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # module -> its input and output

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorded[module] = (inputs[0], output)

    def layer(module: TransLayer) -> Layer:
        return Layer(module.attn, *recorded[module.norm], recorded[module.attn.to_out][0])

    layers = (model.layer1, model.layer2)
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in (*(part for one in layers for part in (one.norm, one.attn.to_out)), model.norm):
            hooks.enter_context(module.register_forward_hook(record))
        model(features, xy)
    return Trace(layer(model.layer1), layer(model.layer2), recorded[model.norm][0], xy)


def encoded(model: TransMIL, tokens: Tensor, xy: Tensor) -> Tensor:
    """Input of the last layer, from the first layer's output ``tokens`` (T, dim): PPEG on all but the class token."""
    around = model.pos_layer.on_grid(tokens[1:], xy) if model.grid else model.pos_layer.on_square(tokens[1:])
    return torch.cat([tokens[:1], around])


def target_from_first(model: TransMIL, traced: Trace, mixed: Tensor, target: Target) -> Tensor:
    """t () as a function of the first layer's ``mixed`` (T, dim)."""
    tokens = traced.first.tokens + traced.first.attention.to_out(mixed)
    class_token, _ = model.layer2.first_token(encoded(model, tokens, traced.xy))
    return target(model.head(model.norm(class_token)))


def target_from_last(model: TransMIL, traced: Trace, mixed: Tensor, target: Target) -> Tensor:
    """t () as a function of the last layer's ``mixed`` (dim,)."""
    class_token = traced.last.tokens[0] + traced.last.attention.to_out(mixed)
    return target(model.head(model.norm(class_token)))


def first_gradient(model: TransMIL, traced: Trace, target: Target) -> Tensor:
    """dt/dO of the first layer, (H, T, d)."""
    mixed = traced.first.mixed.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(target_from_first(model, traced, mixed, target), mixed)
    return traced.first.attention.split_heads(gradient)[0]


def last_gradient(model: TransMIL, traced: Trace, target: Target) -> Tensor:
    """dt/dO of the class token in the last layer, (H, d); that of every other token is zero."""
    mixed = traced.last.mixed.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(target_from_last(model, traced, mixed, target), mixed)
    heads: Tensor = gradient.unflatten(0, (traced.last.attention.heads, -1))
    return heads
