"""DeepLIFT rules: for each operator, how the change of its output is distributed over the changes of its inputs.

Each rule is a linear map that takes the inputs' changes, bag less reference bag, exactly to the output's change. It
replaces the operator in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

AFFINE = f"{LINEAR} masked_fill where pad"  # names of operators that are linear up to a constant
ELEMENTWISE = """
    relu leaky_relu elu gelu silu softplus tanh sigmoid log_sigmoid exp expm1 log log1p sqrt rsqrt square abs
    reciprocal rdiv pow clamp
"""
PRODUCTS = "mul matmul mm bmm mv"


def reference_of(tensor: Tensor) -> Tensor:
    """The tensor's value for the reference bag; a constant is unchanged."""
    return tensor.reference if isinstance(tensor, TracedTensor) else tensor


def at_reference(call: Call) -> Any:
    """The operator's result for the reference bag."""
    with torch.no_grad():
        return call.on(reference_of)


# --- rules ---------------------------------------------------------------------------------------------------


def _linear(rules: BackwardRules, call: Call) -> Any:
    """The gradient."""
    return traced(rules, call.on(value_of), at_reference(call))


def _layer(rules: BackwardRules, call: Call) -> Any:
    """A linear layer or a convolution; only one of input and weights may be traced."""
    return _linear(rules, call) if len(call.traced) == 1 else without_rule(rules, call)


def _elementwise(rules: BackwardRules, call: Call) -> Any:
    """Rescale rule: the output's change over the input's; the derivative where the input does not change."""
    if len(call.tensors) != 1:
        return without_rule(rules, call)
    (x,) = call.traced
    value, reference = call.on(constant_of), at_reference(call)
    slope = quotient(value - reference, constant_of(x) - x.reference, lambda: _derivative(call))
    return traced(rules, straight_through(value, x.value * slope), reference)


def _product(rules: BackwardRules, call: Call) -> Any:
    """Product rule: d(uv) = mean(v) du + mean(u) dv, elementwise or for matrices."""
    if len(call.traced) == 1:
        return _linear(rules, call)
    if len(call.args) != 2 or call.kwargs:
        return without_rule(rules, call)
    u, v = call.args
    surrogate = call.function(u.value, _midpoint(v)) + call.function(_midpoint(u), v.value)
    return traced(rules, straight_through(call.on(constant_of), surrogate), at_reference(call))


def _ratio(rules: BackwardRules, call: Call) -> Any:
    """u / v is u times 1 / v: the product rule, and the rescale rule d(1/v) = -dv / (v v0)."""
    u, v, *others = call.args
    if others or call.kwargs:
        return without_rule(rules, call)
    if not isinstance(v, TracedTensor):
        return _linear(rules, call)
    now, before = constant_of(v), v.reference
    inverse = (1 / now + 1 / before) / 2
    fall = v.value / (now * before)
    surrogate = -fall * _midpoint(u)
    if isinstance(u, TracedTensor):
        surrogate = surrogate + u.value * inverse
    return traced(rules, straight_through(call.on(constant_of), surrogate), at_reference(call))


def _winner(rules: BackwardRules, call: Call) -> Any:
    """Maximum over one dimension: the bag's winner takes all, and is compared with its own reference."""
    if "dim" not in call.kwargs and (len(call.args) < 2 or not isinstance(call.args[1], int)):
        return without_rule(rules, call)
    return _indexed(rules, call, *call.args, **call.kwargs)


def _indexed(rules: BackwardRules, call: Call, input: TracedTensor, dim: int, keepdim: bool = False) -> Any:
    result = call.on(value_of)
    index = result.indices if keepdim else result.indices.unsqueeze(dim)
    reference = input.reference.gather(dim, index)
    return traced(rules, result, (reference if keepdim else reference.squeeze(dim), result.indices))


def _layer_norm(rules: BackwardRules, call: Call) -> Any:
    """c / std, c the centred values: the product rule on c and 1 / std, the rescale rule on 1 / sqrt(mean c^2)."""
    return _normalised(rules, call, *call.args, **call.kwargs)


def _normalised(
    rules: BackwardRules,
    call: Call,
    input: TracedTensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,  # noqa: ARG001
    eps: float = 1e-5,
) -> Any:
    dims = tuple(range(-len(normalized_shape), 0))

    def mean(tensor: Tensor) -> Tensor:
        return tensor.mean(dims, keepdim=True)

    centred = input.value - mean(input.value)
    now, before = centred.detach(), input.reference - mean(input.reference)
    std, std_before = (mean(now.square()) + eps).sqrt(), (mean(before.square()) + eps).sqrt()
    rise = mean((now + before) * centred)  # of the variance
    fall = -rise / (std * std_before * (std + std_before))  # of 1 / std
    surrogate = centred * ((1 / std + 1 / std_before) / 2) + fall * ((now + before) / 2)
    if weight is not None:
        surrogate = surrogate * weight
    return traced(rules, straight_through(call.on(constant_of), surrogate), at_reference(call))


# --- weights that sum to 1 -----------------------------------------------------------------------------------


class Normaliser(NamedTuple):
    """Weights p_k = f(scale z_k - t) of scores z, with the threshold t for which they sum to 1."""

    scale: float
    inverse: Callable[[Tensor], Tensor]  # of f, where p is not 0
    slope: Callable[[Tensor], Tensor]  # f', of u


NORMALISERS = {
    "softmax": Normaliser(1, torch.log, torch.exp),
    "sparsemax": Normaliser(1, torch.clone, lambda u: (u > 0).to(u.dtype)),
    "entmax15": Normaliser(0.5, torch.sqrt, lambda u: 2 * u.clamp(min=0)),
}


def _weights(rules: BackwardRules, call: Call) -> Any:
    """Rescale rule on f: dp_k = r_k (du_k - dt), and dt = sum_k r_k du_k / sum_k r_k, as the dp sum to 0."""
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    if call.kwargs.get("dtype") is not None or not isinstance(dim, int) or len(call.args) > 2:
        return without_rule(rules, call)
    kind, (scores,) = NORMALISERS[call.name], call.traced
    value, reference = call.on(constant_of), at_reference(call)
    pairs = ((constant_of(scores), value), (scores.reference, reference))
    now, before = (_above_threshold(kind, *pair, dim) for pair in pairs)
    rates = quotient(value - reference, now - before, lambda: kind.slope(now))  # r
    rates = rates.masked_fill((now == -torch.inf) & (before == -torch.inf), 0)  # masked in both
    raised = scores.value * (kind.scale * rates)  # r du
    surrogate = raised - rates * (raised.sum(dim, keepdim=True) / rates.sum(dim, keepdim=True))
    return traced(rules, straight_through(value, surrogate), reference)


def _above_threshold(kind: Normaliser, scores: Tensor, weights: Tensor, dim: int) -> Tensor:
    """u = scale z - t, for which f(u) are the weights."""
    largest, index = weights.max(dim, keepdim=True)
    return kind.scale * (scores - scores.gather(dim, index)) + kind.inverse(largest)


# --- attention that is frozen --------------------------------------------------------------------------------


def _attend(rules: BackwardRules, call: Call) -> Any:
    """Fused attention: the bag's weights are used for the reference bag as well."""
    return _attended(rules, call, *call.args, **call.kwargs)


def _attended(
    rules: BackwardRules, call: Call, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any
) -> Any:
    if not isinstance(value, TracedTensor):
        return without_rule(rules, call)
    rules.frozen_kinds.add("attention")
    query, key = constant_of(query), constant_of(key)
    with torch.no_grad():
        reference = call.function(query, key, value.reference, *others, **named)
    return traced(rules, call.function(query, key, value.value, *others, **named), reference)


def _factor(rules: BackwardRules, call: Call) -> Any:
    """With frozen attention, a product of two traced tensors can only lead to attention weights."""
    return _linear(rules, call) if len(call.traced) == 1 else without_rule(rules, call)


# --- helpers ---------------------------------------------------------------------------------------------------


def quotient(change: Tensor, by: Tensor, slope: Callable[[], Tensor]) -> Tensor:
    """change / by, and ``slope()`` where ``by`` is 0."""
    unchanged = by == 0
    if not unchanged.any():
        return change / by
    return torch.where(unchanged, slope(), change / by)


def _derivative(call: Call) -> Tensor:
    """Derivative of an elementwise operator at the bag."""
    leaf = constant_of(call.traced[0]).clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(call.on(lambda _: leaf).sum(), leaf)
    return slope


def _midpoint(tensor: Tensor) -> Tensor:
    """Mean of the values for the bag and the reference bag."""
    return (constant_of(tensor) + tensor.reference) / 2 if isinstance(tensor, TracedTensor) else tensor


COMPLETE: dict[str, Rule] = {
    **dict.fromkeys(AFFINE.split(), _linear),
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("linear", "conv1d", "conv2d"), _layer),
    **dict.fromkeys(PRODUCTS.split(), _product),
    **dict.fromkeys(NORMALISERS, _weights),
    "div": _ratio,
    "max": _winner,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attend,
}
FROZEN_ATTENTION: dict[str, Rule] = {
    **COMPLETE,
    **dict.fromkeys(PRODUCTS.split(), _factor),
    **dict.fromkeys(NORMALISERS, held_constant),
}
