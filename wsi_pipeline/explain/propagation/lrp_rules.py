"""LRP's rules: how each operator hands the relevance of its output back to its inputs.

Relevance is kept per unit, R_i / x_i, as a gradient: a rule is a surrogate whose gradient is that ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .traced_tensor import (
    LINEAR,
    BackwardRules,
    Call,
    Rule,
    TracedTensor,
    constant_of,
    held_constant,
    straight_through,
    traced,
    value_of,
)
from .traced_tensor import without_rule as unruled


@dataclass(eq=False)
class Relevance(BackwardRules):
    """The way back of one bag: epsilon, gamma, and who else is given relevance."""

    epsilon: float = 0.0
    gamma: float = 0.0
    parts: dict[str, list[Tensor]] = field(default_factory=dict)  # constants that are added, as leaves
    swallowed: list[Tensor] = field(default_factory=list)  # what epsilon took, layer by layer

    def part(self, tensor: Tensor, place: str) -> Tensor:
        """A constant that is added to what is followed, as a leaf with a share of its own; zeros have none."""
        if isinstance(tensor, TracedTensor):
            return tensor.value
        if not tensor.is_floating_point() or not tensor.any():
            return tensor
        leaf = tensor.detach().requires_grad_()
        self.parts.setdefault(place, []).append(leaf)
        return leaf


# --- rules ---------------------------------------------------------------------------------------------------


def _linear(way: Relevance, call: Call) -> Any:
    """The gradient. Constants that are joined to the followed are parts of the answer: a class token, a bias."""
    place = "class token" if call.name in ("cat", "stack") else "bias"
    return traced(way, call.on(lambda tensor: way.part(tensor, place)))


def _sum(way: Relevance, call: Call) -> Any:
    """Like ``_linear``; a number that is added is a part, too."""
    like = call.followed[0].value
    numbers = [like.new_tensor(one) if isinstance(one, (int, float)) else one for one in call.args]
    return _linear(way, Call(call.name, call.function, tuple(numbers), call.kwargs))


def _scaled(way: Relevance, call: Call) -> Any:
    """A product in which all but one factor are constants: the gradient."""
    by = call.name == "div" and call.args[0] is not call.followed[0]
    if len(call.followed) != 1 or by or call.kwargs:
        return unruled(way, call)
    return traced(way, call.on(value_of))


def _homogeneous(way: Relevance, call: Call) -> Any:
    """ReLU hands on what it is given; of a maximum the winner takes all. Both are the gradient."""
    return traced(way, call.on(value_of)) if len(call.tensors) == 1 else unruled(way, call)


def _identity(way: Relevance, call: Call) -> Any:
    """An activation f with f(0) = 0 hands on what it is given: its slope is f(x) / x."""
    x, value = call.followed[0].value, call.on(constant_of)
    slope = torch.where(x == 0, 0, value / x).detach()
    return traced(way, straight_through(value, x * slope))


def _layer(way: Relevance, call: Call) -> Any:
    """Epsilon and gamma rule of a linear layer or a convolution."""
    return _affine(way, call, *call.args, **call.kwargs)


def _affine(
    way: Relevance, call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None, *sizes: Any, **named: Any
) -> Any:
    if isinstance(weight, TracedTensor) or not isinstance(input, TracedTensor):
        return unruled(way, call)
    added = None if bias is None else way.part(bias, "bias")

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = call.function(x, weight, bias, *sizes, **named)
        return output

    output = layer(input.value, weight, added)  # z
    if way.epsilon == way.gamma == 0:
        return traced(way, output)
    favoured = output if way.gamma == 0 else _favoured(layer, input.value, weight, added, output, way.gamma)
    absorbed: Tensor = _Absorb.apply(output.detach(), favoured, way.epsilon, way.swallowed)  # type: ignore[no-untyped-call]
    return traced(way, absorbed)


def _favoured(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, gamma: float) -> Tensor:
    """z with each part of z's own sign (1 + gamma) times."""
    up, down = x.clamp(min=0), x.clamp(max=0)
    more, less = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
    high = low = None
    if bias is not None:
        high, low = bias + gamma * bias.clamp(min=0), bias + gamma * bias.clamp(max=0)
    above = layer(up, more, high) + layer(down, less, None)
    below = layer(up, less, low) + layer(down, more, None)
    return torch.where(output > 0, above, below)


def _layer_norm(way: Relevance, call: Call) -> Any:
    """LN rule: the standard deviation is a constant, so what is left is linear."""
    return _normalised(way, call, *call.args, **call.kwargs)


def _normalised(
    way: Relevance,
    call: Call,
    input: TracedTensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input.value - input.value.mean(dims, keepdim=True)
    scale = (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    surrogate = centred * scale if weight is None else centred * (scale * weight)
    if bias is not None:
        surrogate = surrogate + way.part(bias, "bias")
    return traced(way, straight_through(call.on(constant_of), surrogate))


def _attend(way: Relevance, call: Call) -> Any:
    """AH rule: attention weights are constants, so what is left is linear in the values."""
    return _attended(way, call, *call.args, **call.kwargs)


def _attended(way: Relevance, call: Call, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
    if not isinstance(value, TracedTensor):
        return unruled(way, call)
    return traced(way, call.function(constant_of(query), constant_of(key), value.value, *others, **named))


RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR.split(), _linear),
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    **dict.fromkeys(("mul", "div", "matmul", "mm", "bmm", "mv"), _scaled),
    **dict.fromkeys(("relu", "leaky_relu", "max", "amax"), _homogeneous),
    **dict.fromkeys(("gelu", "silu", "tanh"), _identity),
    **dict.fromkeys(("linear", "conv1d", "conv2d"), _layer),
    **dict.fromkeys(("softmax", "sparsemax", "entmax15"), held_constant),
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attend,
}


class _Absorb(Function):
    """z forward; backward relevance per unit of z becomes relevance per unit of the favoured z, epsilon its share."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, favoured: Tensor, epsilon: float, swallowed: list[Tensor]) -> Tensor:
        below = favoured < 0
        stable = favoured + favoured.new_tensor(epsilon) * torch.where(below, -1, 1)
        ratio = torch.where(stable == 0, 1, output / stable)  # z is 0 where its favoured parts are
        ctx.save_for_backward(ratio, below)
        ctx.epsilon, ctx.swallowed = epsilon, swallowed
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ratio, below = ctx.saved_tensors
        given = grads[0] * ratio
        ctx.swallowed.append(ctx.epsilon * torch.where(below, -given, given).sum())
        return None, given, None, None
