"""LRP rules: how each operator redistributes the relevance of its output to its inputs.

Relevance is kept per unit of the value, R_i / x_i, as a gradient: a rule is a surrogate whose gradient is that ratio.
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
    without_rule,
)


@dataclass(eq=False)
class RelevanceRules(BackwardRules):
    """LRP of one bag: epsilon, gamma, and the recipients of relevance other than patches."""

    epsilon: float = 0.0
    gamma: float = 0.0
    constants: dict[str, list[Tensor]] = field(default_factory=dict)  # "bias", "class token" -> added constants
    absorbed: list[Tensor] = field(default_factory=list)  # relevance absorbed by epsilon, layer by layer

    def as_leaf(self, tensor: Tensor, place: str) -> Tensor:
        """Make a constant that is added to traced values a leaf, which receives relevance; zeros receive none."""
        if isinstance(tensor, TracedTensor):
            return tensor.value
        if not tensor.is_floating_point() or not tensor.any():
            return tensor
        leaf = tensor.detach().requires_grad_()
        self.constants.setdefault(place, []).append(leaf)
        return leaf


# --- rules ---------------------------------------------------------------------------------------------------


def _linear(rules: RelevanceRules, call: Call) -> Any:
    """The gradient. Constants that are joined to traced tensors receive relevance: a class token, a bias."""
    place = "class token" if call.name in ("cat", "stack") else "bias"
    return traced(rules, call.on(lambda tensor: rules.as_leaf(tensor, place)))


def _sum(rules: RelevanceRules, call: Call) -> Any:
    """As ``_linear``; a Python number that is added receives relevance as well."""
    like = call.traced[0].value
    numbers = [like.new_tensor(one) if isinstance(one, (int, float)) else one for one in call.args]
    return _linear(rules, Call(call.name, call.function, tuple(numbers), call.kwargs))


def _scaled(rules: RelevanceRules, call: Call) -> Any:
    """A product in which all factors but one are constants: the gradient."""
    traced_divisor = call.name == "div" and call.args[0] is not call.traced[0]
    if len(call.traced) != 1 or traced_divisor or call.kwargs:
        return without_rule(rules, call)
    return traced(rules, call.on(value_of))


def _homogeneous(rules: RelevanceRules, call: Call) -> Any:
    """ReLU passes relevance on unchanged; for a maximum, the winner takes all. Both are the gradient."""
    return traced(rules, call.on(value_of)) if len(call.tensors) == 1 else without_rule(rules, call)


def _identity(rules: RelevanceRules, call: Call) -> Any:
    """An activation f with f(0) = 0 passes relevance on unchanged: the slope is f(x) / x."""
    x, value = call.traced[0].value, call.on(constant_of)
    slope = torch.where(x == 0, 0, value / x).detach()
    return traced(rules, straight_through(value, x * slope))


def _layer(rules: RelevanceRules, call: Call) -> Any:
    """Epsilon and gamma rule of a linear layer or a convolution."""
    return _affine(rules, call, *call.args, **call.kwargs)


def _affine(
    rules: RelevanceRules,
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *sizes: Any,
    **named: Any,
) -> Any:
    if isinstance(weight, TracedTensor) or not isinstance(input, TracedTensor):
        return without_rule(rules, call)
    added = None if bias is None else rules.as_leaf(bias, "bias")

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = call.function(x, weight, bias, *sizes, **named)
        return output

    output = layer(input.value, weight, added)  # z
    if rules.epsilon == rules.gamma == 0:
        return traced(rules, output)
    weighted = output if rules.gamma == 0 else _gamma_weighted(layer, input.value, weight, added, output, rules.gamma)
    rescaled: Tensor = _Rescale.apply(output.detach(), weighted, rules.epsilon, rules.absorbed)  # type: ignore[no-untyped-call]
    return traced(rules, rescaled)


def _gamma_weighted(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, gamma: float) -> Tensor:
    """z with the contributions of z's own sign multiplied by 1 + gamma."""
    up, down = x.clamp(min=0), x.clamp(max=0)
    more, less = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
    high = low = None
    if bias is not None:
        high, low = bias + gamma * bias.clamp(min=0), bias + gamma * bias.clamp(max=0)
    above = layer(up, more, high) + layer(down, less, None)
    below = layer(up, less, low) + layer(down, more, None)
    return torch.where(output > 0, above, below)


def _layer_norm(rules: RelevanceRules, call: Call) -> Any:
    """LN rule: the standard deviation is a constant, so the rest is linear."""
    return _normalised(rules, call, *call.args, **call.kwargs)


def _normalised(
    rules: RelevanceRules,
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
        surrogate = surrogate + rules.as_leaf(bias, "bias")
    return traced(rules, straight_through(call.on(constant_of), surrogate))


def _attend(rules: RelevanceRules, call: Call) -> Any:
    """AH rule: attention weights are constants, so the rest is linear in the values."""
    return _attended(rules, call, *call.args, **call.kwargs)


def _attended(
    rules: RelevanceRules, call: Call, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any
) -> Any:
    if not isinstance(value, TracedTensor):
        return without_rule(rules, call)
    return traced(rules, call.function(constant_of(query), constant_of(key), value.value, *others, **named))


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


class _Rescale(Function):
    """z forward; backward, relevance per unit of z becomes that per unit of the weighted z, less epsilon's part."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, weighted: Tensor, epsilon: float, absorbed: list[Tensor]) -> Tensor:
        below = weighted < 0
        stable = weighted + weighted.new_tensor(epsilon) * torch.where(below, -1, 1)
        ratio = torch.where(stable == 0, 1, output / stable)  # z is 0 where its weighted contributions are
        ctx.save_for_backward(ratio, below)
        ctx.epsilon, ctx.absorbed = epsilon, absorbed
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ratio, below = ctx.saved_tensors
        given = grads[0] * ratio
        ctx.absorbed.append(ctx.epsilon * torch.where(below, -given, given).sum())
        return None, given, None, None
