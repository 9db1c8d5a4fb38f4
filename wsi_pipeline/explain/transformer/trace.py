"""What happens inside TransMIL on one bag, and the gradient of its answer with respect to what each token attended to.

The trace is written down by hooks while the model makes its own forward pass. Gradients start from the trace and use
the model's own modules behind it, so that nothing in front is computed again or kept. As O = A V enters ``mixed`` as
a summand, dt/dO is dt/dmixed, and the gradient of the attention map is dt/dA[i, j] = <dt/dO_i, V_j>: no map is needed.
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
    """One attention layer as it ran. Frame of a map's columns: P = padding + T, as in ``nystrom``."""

    attention: TokenAttention
    tokens: Tensor  # (T, dim) what the layer was given
    normed: Tensor  # (T, dim) the same behind LayerNorm
    mixed: Tensor  # what goes into the output projection: (T, dim), in the last layer the class token's (dim,)

    @property
    def padding(self) -> int:
        """How many zero keys stand in front of the tokens."""
        return self.attention.padding(len(self.tokens))

    def padded(self) -> Tensor:
        """What the keys are made of, (P, dim)."""
        return self.attention.padded(self.normed)

    def values(self) -> Tensor:
        """(H, P, d)."""
        return self.attention.split_heads(F.linear(self.padded(), self.value_weight()))[0]

    def value_weight(self) -> Tensor:
        """What makes values of ``normed``, (dim, dim)."""
        return self.attention.to_qkv.weight.chunk(3)[2]

    def output_weight(self) -> Tensor:
        """What is laid on ``mixed``, (dim, dim)."""
        return self.attention.to_out.get_parameter("0.weight")

    @cached_property
    def class_row(self) -> Tensor:
        """The class token's row of each head's attention map, (H, P)."""
        return self.attention.first_row(self.normed[:1], self.padded())

    def times_values(self, vectors: Tensor) -> Tensor:
        """<vectors_h, V_hj> of one vector a head: (H, d) -> (H, P), without the values."""
        weight = self.value_weight().unflatten(0, vectors.shape)  # (H, d, dim)
        products: Tensor = (vectors[:, None] @ weight)[:, 0] @ self.padded().mT
        return products


@dataclass(frozen=True, eq=False)
class Trace:
    """Both attention layers of one forward pass, and the class token (dim,) behind them."""

    first: Layer
    last: Layer
    class_token: Tensor
    xy: Tensor  # (N, 2)


def trace(model: TransMIL, features: Tensor, xy: Tensor) -> Trace:
    """Watch the model's own forward pass; no gradient. The model is in eval mode."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # module -> what it was given and what it gave

    def note(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> None:
        seen[module] = (given[0], gave)

    def layer(ran: TransLayer) -> Layer:
        return Layer(ran.attn, *seen[ran.norm], seen[ran.attn.to_out][0])

    layers = (model.layer1, model.layer2)
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in (*(part for ran in layers for part in (ran.norm, ran.attn.to_out)), model.norm):
            hooks.enter_context(module.register_forward_hook(note))
        model(features, xy)
    return Trace(layer(model.layer1), layer(model.layer2), seen[model.norm][0], xy)


def encoded(model: TransMIL, tokens: Tensor, xy: Tensor) -> Tensor:
    """What the last layer is given when the first gives ``tokens`` (T, dim): PPEG on all but the class token."""
    around = model.pos_layer.on_grid(tokens[1:], xy) if model.grid else model.pos_layer.on_square(tokens[1:])
    return torch.cat([tokens[:1], around])


def answer_from_first(model: TransMIL, seen: Trace, mixed: Tensor, target: Target) -> Tensor:
    """The contrast () as a function of the first layer's ``mixed`` (T, dim)."""
    tokens = seen.first.tokens + seen.first.attention.to_out(mixed)
    class_token, _ = model.layer2.first_token(encoded(model, tokens, seen.xy))
    return target(model.head(model.norm(class_token)))


def answer_from_last(model: TransMIL, seen: Trace, mixed: Tensor, target: Target) -> Tensor:
    """The contrast () as a function of the last layer's ``mixed`` (dim,)."""
    class_token = seen.last.tokens[0] + seen.last.attention.to_out(mixed)
    return target(model.head(model.norm(class_token)))


def first_gradient(model: TransMIL, seen: Trace, target: Target) -> Tensor:
    """dt/dO of the first layer, t the contrast: (H, T, d)."""
    mixed = seen.first.mixed.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(answer_from_first(model, seen, mixed, target), mixed)
    return seen.first.attention.split_heads(gradient)[0]


def last_gradient(model: TransMIL, seen: Trace, target: Target) -> Tensor:
    """dt/dO of the class token in the last layer, (H, d); that of every other token is zero."""
    mixed = seen.last.mixed.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(answer_from_last(model, seen, mixed, target), mixed)
    heads: Tensor = gradient.unflatten(0, (seen.last.attention.heads, -1))
    return heads
