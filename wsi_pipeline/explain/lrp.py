"""Layer-wise relevance propagation: the answer handed back, layer by layer, to what it was added up from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..errors import ConfigError
from ..types import Float32, Unit
from . import Account, Explainer, explainers
from .followed import (
    LINEAR,
    Call,
    Followed,
    Rule,
    Way,
    constant_of,
    follow,
    followed_logits,
    held,
    swap,
    trial,
    value_of,
)
from .followed import without_rule as unruled
from .frozen import frozen
from .target import contrast


@dataclass(eq=False)
class Relevance(Way):
    """The way back of one bag: epsilon, gamma, and who else is given relevance."""

    epsilon: float = 0.0
    gamma: float = 0.0
    parts: dict[str, list[Tensor]] = field(default_factory=dict)  # constants that are added, as leaves
    swallowed: list[Tensor] = field(default_factory=list)  # what epsilon took, layer by layer

    def part(self, tensor: Tensor, place: str) -> Tensor:
        """A constant that is added to what is followed, as a leaf with a share of its own; zeros have none."""
        if isinstance(tensor, Followed):
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
    return follow(way, call.on(lambda tensor: way.part(tensor, place)))


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
    return follow(way, call.on(value_of))


def _homogeneous(way: Relevance, call: Call) -> Any:
    """ReLU hands on what it is given; of a maximum the winner takes all. Both are the gradient."""
    return follow(way, call.on(value_of)) if len(call.tensors) == 1 else unruled(way, call)


def _identity(way: Relevance, call: Call) -> Any:
    """An activation f with f(0) = 0 hands on what it is given: its slope is f(x) / x."""
    x, value = call.followed[0].value, call.on(constant_of)
    slope = torch.where(x == 0, 0, value / x).detach()
    return follow(way, swap(value, x * slope))


def _layer(way: Relevance, call: Call) -> Any:
    """Epsilon and gamma rule of a linear layer or a convolution."""
    return _affine(way, call, *call.args, **call.kwargs)


def _affine(
    way: Relevance, call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None, *sizes: Any, **named: Any
) -> Any:
    if isinstance(weight, Followed) or not isinstance(input, Followed):
        return unruled(way, call)
    added = None if bias is None else way.part(bias, "bias")

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = call.function(x, weight, bias, *sizes, **named)
        return output

    output = layer(input.value, weight, added)  # z
    if way.epsilon == way.gamma == 0:
        return follow(way, output)
    favoured = output if way.gamma == 0 else _favoured(layer, input.value, weight, added, output, way.gamma)
    absorbed: Tensor = _Absorb.apply(output.detach(), favoured, way.epsilon, way.swallowed)  # type: ignore[no-untyped-call]
    return follow(way, absorbed)


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
    input: Followed,
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
    return follow(way, swap(call.on(constant_of), surrogate))


def _attend(way: Relevance, call: Call) -> Any:
    """AH rule: attention weights are constants, so what is left is linear in the values."""
    return _attended(way, call, *call.args, **call.kwargs)


def _attended(way: Relevance, call: Call, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
    if not isinstance(value, Followed):
        return unruled(way, call)
    return follow(way, call.function(constant_of(query), constant_of(key), value.value, *others, **named))


RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR.split(), _linear),
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    **dict.fromkeys(("mul", "div", "matmul", "mm", "bmm", "mv"), _scaled),
    **dict.fromkeys(("relu", "leaky_relu", "max", "amax"), _homogeneous),
    **dict.fromkeys(("gelu", "silu", "tanh"), _identity),
    **dict.fromkeys(("linear", "conv1d", "conv2d"), _layer),
    **dict.fromkeys(("softmax", "sparsemax", "entmax15"), held),
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


# --- method --------------------------------------------------------------------------------------------------


class LayerwiseRelevance:
    """Sum over d of the relevance of x_kd: t, the contrast, handed back through the model.

    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    PLOS ONE 2015, for linear layers and convolutions: z_j = sum_i x_i w_ij + b_j hands on R_j in proportion to its
    parts, z_j enlarged by ``epsilon`` of its sign, and parts of z_j's sign counted (1 + ``gamma``) times (Montavon et
    al., 2019, in the form for inputs of either sign). Ali et al., "XAI for Transformers: Better Explanations through
    Conservative Propagation", ICML 2022, for the rest: attention weights are constants, and so is the standard
    deviation of a LayerNorm. ReLU and GELU hand on what they are given, of a maximum the winner takes all.

    Relevance is kept per unit, R_i / x_i, as a gradient, so the backward pass is the model's own with other slopes,
    and epsilon may be 0. Conservation: the scores, "bias", "class token" and, where epsilon is not 0, "epsilon" add
    up to t. Copies of a patch hand theirs to the patch; zero padding gets none.

    A patch's part in the weights of others is not counted. So with epsilon and gamma 0 a model that is a weighted sum
    of linear embeddings without biases has exactly its contributions. How patches are pooled to nodes in a graph
    transformer is a weight, too.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, epsilon: float, gamma: float) -> None:
        self.epsilon = epsilon
        self.gamma = gamma

    def fits(self, model: nn.Module) -> str | None:
        return trial(lambda features, xy: self.account(model, features, xy, 0), model)

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        scores: Float32 = self.account(model, features, xy, target).scores.float().cpu().numpy()
        return scores

    def account(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Account:
        """Scores (N,); with the other parts they add up to t(x)."""
        way = Relevance(RULES, epsilon=self.epsilon, gamma=self.gamma)
        leaf = features.detach().requires_grad_()
        with frozen(model), torch.enable_grad():
            value = contrast(followed_logits(model, way, leaf, xy).value, target)  # ()
            parts = {place: list(leaves) for place, leaves in way.parts.items()}
            others = [part for leaves in parts.values() for part in leaves]
            slope, *slopes = torch.autograd.grad(value, [leaf, *others], allow_unused=True, materialize_grads=True)
        shares = iter([(part * per_unit).sum().item() for part, per_unit in zip(others, slopes, strict=True)])
        unattributed = {place: sum(next(shares) for _ in leaves) for place, leaves in parts.items()}
        if self.epsilon:
            unattributed["epsilon"] = sum(share.item() for share in way.swallowed)
        return Account((features * slope).sum(1), unattributed)


@explainers.register(
    "lrp",
    paper="Bach et al., PLOS ONE 2015; Ali et al., ICML 2022",
    unit="attribution",
    signed=True,
    class_specific=True,
)
def lrp(*, epsilon: float = 0.0, gamma: float = 0.0) -> Explainer:
    """The answer handed back to what it was added up from, attention held constant; the biases' share is told.

    ``epsilon``: in units of a layer's output, takes relevance away where parts cancel. ``gamma``: how much more the
    parts of the output's own sign count.
    """
    for name, number in (("epsilon", epsilon), ("gamma", gamma)):
        real = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not real or not math.isfinite(number) or number < 0:
            raise ConfigError(f"method option {name} is {number!r}; it must be a number of at least 0")
    return LayerwiseRelevance(float(epsilon), float(gamma))
