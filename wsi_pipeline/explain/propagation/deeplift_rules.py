"""DeepLIFT's rules: for each operator, how the change of its output is the sum of shares of its inputs' changes.

Each rule is a map that is linear in the inputs and takes their changes, bag less reference bag, exactly to the
output's. It stands in for the operator on the way back.
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
)
from .traced_tensor import without_rule as unruled

AFFINE = f"{LINEAR} masked_fill where pad"  # names of operators that are linear up to a constant
ELEMENTWISE = """
    relu leaky_relu elu gelu silu softplus tanh sigmoid log_sigmoid exp expm1 log log1p sqrt rsqrt square abs
    reciprocal rdiv pow clamp
"""
PRODUCTS = "mul matmul mm bmm mv"


def reference_of(tensor: Tensor) -> Tensor:
    """What the tensor is for the reference bag; a constant is the same."""
    return tensor.reference if isinstance(tensor, TracedTensor) else tensor


def at_reference(call: Call) -> Any:
    """The operator's result for the reference bag."""
    with torch.no_grad():
        return call.on(reference_of)


# --- rules ---------------------------------------------------------------------------------------------------


def _linear(way: BackwardRules, call: Call) -> Any:
    """The gradient."""
    return traced(way, call.on(value_of), at_reference(call))


def _layer(way: BackwardRules, call: Call) -> Any:
    """A linear layer or a convolution, of which one of input and weights is followed."""
    return _linear(way, call) if len(call.followed) == 1 else unruled(way, call)


def _elementwise(way: BackwardRules, call: Call) -> Any:
    """Rescale rule: the output's change over the input's; where there is none, the slope."""
    if len(call.tensors) != 1:
        return unruled(way, call)
    (x,) = call.followed
    value, reference = call.on(constant_of), at_reference(call)
    slope = quotient(value - reference, constant_of(x) - x.reference, lambda: _slope(call))
    return traced(way, straight_through(value, x.value * slope), reference)


def _product(way: BackwardRules, call: Call) -> Any:
    """d(uv) = mean(v) du + mean(u) dv, of numbers or matrices."""
    if len(call.followed) == 1:
        return _linear(way, call)
    if len(call.args) != 2 or call.kwargs:
        return unruled(way, call)
    u, v = call.args
    surrogate = call.function(u.value, _middle(v)) + call.function(_middle(u), v.value)
    return traced(way, straight_through(call.on(constant_of), surrogate), at_reference(call))


def _ratio(way: BackwardRules, call: Call) -> Any:
    """u / v is u times 1 / v: the product rule, and the rescale rule d(1/v) = -dv / (v v0)."""
    u, v, *others = call.args
    if others or call.kwargs:
        return unruled(way, call)
    if not isinstance(v, TracedTensor):
        return _linear(way, call)
    now, before = constant_of(v), v.reference
    inverse = (1 / now + 1 / before) / 2
    fall = v.value / (now * before)
    surrogate = -fall * _middle(u)
    if isinstance(u, TracedTensor):
        surrogate = surrogate + u.value * inverse
    return traced(way, straight_through(call.on(constant_of), surrogate), at_reference(call))


def _winner(way: BackwardRules, call: Call) -> Any:
    """Of a maximum over one dimension the bag's winner takes all, and is compared with its own reference."""
    if "dim" not in call.kwargs and (len(call.args) < 2 or not isinstance(call.args[1], int)):
        return unruled(way, call)
    return _indexed(way, call, *call.args, **call.kwargs)


def _indexed(way: BackwardRules, call: Call, input: TracedTensor, dim: int, keepdim: bool = False) -> Any:
    result = call.on(value_of)
    index = result.indices if keepdim else result.indices.unsqueeze(dim)
    reference = input.reference.gather(dim, index)
    return traced(way, result, (reference if keepdim else reference.squeeze(dim), result.indices))


def _layer_norm(way: BackwardRules, call: Call) -> Any:
    """c / std of what is centred, c: the product rule on c and 1 / std, the rescale rule on 1 / sqrt(mean c^2)."""
    return _normalised(way, call, *call.args, **call.kwargs)


def _normalised(
    way: BackwardRules,
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
    return traced(way, straight_through(call.on(constant_of), surrogate), at_reference(call))


# --- weights that sum to 1 -----------------------------------------------------------------------------------


class Normaliser(NamedTuple):
    """Weights p_k = f(scale z_k - t) of scores z, the threshold t such that they sum to 1."""

    scale: float
    inverse: Callable[[Tensor], Tensor]  # of f, where p is not 0
    slope: Callable[[Tensor], Tensor]  # f', of u


NORMALISERS = {
    "softmax": Normaliser(1, torch.log, torch.exp),
    "sparsemax": Normaliser(1, torch.clone, lambda u: (u > 0).to(u.dtype)),
    "entmax15": Normaliser(0.5, torch.sqrt, lambda u: 2 * u.clamp(min=0)),
}


def _weights(way: BackwardRules, call: Call) -> Any:
    """Rescale rule on f: dp_k = r_k (du_k - dt), and dt = sum_k r_k du_k / sum_k r_k, as the dp sum to 0."""
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    if call.kwargs.get("dtype") is not None or not isinstance(dim, int) or len(call.args) > 2:
        return unruled(way, call)
    kind, (scores,) = NORMALISERS[call.name], call.followed
    value, reference = call.on(constant_of), at_reference(call)
    now, before = (_above(kind, *of, dim) for of in ((constant_of(scores), value), (scores.reference, reference)))
    rates = quotient(value - reference, now - before, lambda: kind.slope(now))  # r
    rates = rates.masked_fill((now == -torch.inf) & (before == -torch.inf), 0)  # masked in both
    raised = scores.value * (kind.scale * rates)  # r du
    surrogate = raised - rates * (raised.sum(dim, keepdim=True) / rates.sum(dim, keepdim=True))
    return traced(way, straight_through(value, surrogate), reference)


def _above(kind: Normaliser, scores: Tensor, weights: Tensor, dim: int) -> Tensor:
    """u = scale z - t, of which f gives the weights."""
    largest, index = weights.max(dim, keepdim=True)
    return kind.scale * (scores - scores.gather(dim, index)) + kind.inverse(largest)


# --- attention that is held ----------------------------------------------------------------------------------


def _attend(way: BackwardRules, call: Call) -> Any:
    """Fused attention: the weights are those of the bag, for the reference bag as well."""
    return _attended(way, call, *call.args, **call.kwargs)


def _attended(
    way: BackwardRules, call: Call, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any
) -> Any:
    if not isinstance(value, TracedTensor):
        return unruled(way, call)
    way.held.add("attention")
    query, key = constant_of(query), constant_of(key)
    with torch.no_grad():
        reference = call.function(query, key, value.reference, *others, **named)
    return traced(way, call.function(query, key, value.value, *others, **named), reference)


def _factor(way: BackwardRules, call: Call) -> Any:
    """Where attention is held_constant, a product of two that are followed is on the way to weights."""
    return _linear(way, call) if len(call.followed) == 1 else unruled(way, call)


# --- what goes into each ---------------------------------------------------------------------------------------


def quotient(change: Tensor, by: Tensor, slope: Callable[[], Tensor]) -> Tensor:
    """change / by; where ``by`` is 0, the slope."""
    still = by == 0
    if not still.any():
        return change / by
    return torch.where(still, slope(), change / by)


def _slope(call: Call) -> Tensor:
    """The derivative of an elementwise operator at the bag."""
    leaf = constant_of(call.followed[0]).clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(call.on(lambda _: leaf).sum(), leaf)
    return slope


def _middle(tensor: Tensor) -> Tensor:
    """Half way between bag and reference bag."""
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
HELD_ATTENTION: dict[str, Rule] = {
    **COMPLETE,
    **dict.fromkeys(PRODUCTS.split(), _factor),
    **dict.fromkeys(NORMALISERS, held_constant),
}
