"""A bag that is followed through a model: each operator it meets keeps its value, and gets another way back.

``torch.Tensor`` may be subclassed, and then every operator asks the subclass what to do. So a model's own forward
pass computes its own numbers, bit for bit, while a method (layer-wise relevance propagation, DeepLIFT) sets what the
backward pass does at each operator. An operator that a method has no rule for gives its value, but no share may come
back through it: it may lead to weights that are held constant, not to the answer. So nothing is taken as linear
unasked, in a model of ours or of others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_unary

from ...aggregate.smile import SparseAttentionMIL
from ...errors import ConfigError

LINEAR = """
    add sub rsub neg sum mean cat stack index_add getitem select narrow index_select gather chunk split unbind
    t T mT view reshape permute transpose flatten unflatten squeeze unsqueeze expand expand_as clone contiguous to
    dropout
"""  # names of operators that are linear in all their tensors together, dropout out of training among them
# What is about a tensor and not of its values; whatever is made from it holds none of them.
_ABOUT = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}
_WRITING = {"setitem", *(f"i{name}" for name in ("add", "sub", "mul", "div", "truediv", "pow", "floordiv", "mod"))}


class NoRuleError(ConfigError):
    """The method cannot follow the model; ``reason`` says why without naming it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model {reason}; leave the method out of explain.methods")
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Call:
    """One operator as a model calls it, at least one of its tensors followed."""

    name: str  # "softmax", "matmul", "getitem": the same for functions, methods, properties and signs
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def on(self, pick: Callable[[Tensor], Tensor]) -> Any:
        """Its result with ``pick`` of each tensor in its arguments."""
        return self.function(*mapped(pick, self.args), **mapped(pick, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of real numbers among its arguments."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            if value_of(tensor).is_floating_point():
                found.append(tensor)
            return tensor

        mapped(note, [*self.args, *self.kwargs.values()])
        return found

    @property
    def followed(self) -> list[TracedTensor]:
        """The followed ones among them."""
        return [tensor for tensor in self.tensors if isinstance(tensor, TracedTensor)]


Rule = Callable[[Any, Call], Any]


@dataclass(eq=False)
class BackwardRules:
    """A method's way back for one bag: its rules by the operator's name, and what they held at its value."""

    rules: Mapping[str, Rule]
    held: set[str] = field(default_factory=set)


class TracedTensor(Tensor):
    """A tensor on its way from the bag to the answer."""

    value: Tensor  # as the model has it, in the autograd graph
    reference: Tensor  # as the model has it for the reference bag; itself where the method has none
    way: BackwardRules

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call = Call(_name(func), func, args, kwargs or {})
        if call.name in _ABOUT:
            return call.on(value_of)
        way = call.followed[0].way
        if call.name == "detach" or not torch.is_grad_enabled():
            way.held.add("selection")
            return call.on(value_of)
        _refuse(call, func.__name__)
        rule: Rule = way.rules.get(call.name, without_rule)
        return rule(way, call)


def mapped(pick: Callable[[Tensor], Any], tree: Any) -> Any:
    """``pick`` of each tensor in nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        return pick(tree)
    if isinstance(tree, dict):
        return {name: mapped(pick, part) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        return type(tree)([mapped(pick, part) for part in tree])
    return tree


def value_of(tensor: Tensor) -> Tensor:
    """The plain tensor behind a followed one; another as it is."""
    return tensor.value if isinstance(tensor, TracedTensor) else tensor


def constant_of(tensor: Tensor) -> Tensor:
    """The same, out of the graph."""
    return tensor.value.detach() if isinstance(tensor, TracedTensor) else tensor


def traced(way: BackwardRules, value: Any, reference: Any = None) -> Any:
    """``value`` followed from here on, each of its tensors of real numbers; the others, indices and masks, held."""
    if isinstance(value, (list, tuple)):
        references = [None] * len(value) if reference is None else reference
        return type(value)([traced(way, one, other) for one, other in zip(value, references, strict=True)])
    if not value.is_floating_point():
        way.held.add("selection")
        return value
    followed = cast(TracedTensor, value.detach().as_subclass(TracedTensor))
    followed.value = value
    followed.reference = value.detach() if reference is None else reference
    followed.way = way
    return followed


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value`` forward, ``surrogate`` backward: two tensors of one shape."""
    swapped: Tensor = _Swap.apply(value, surrogate)  # type: ignore[no-untyped-call]
    return swapped


def without_rule(way: BackwardRules, call: Call) -> Any:
    """The operator's value; a share that comes back to it raises ``NoRuleError``."""
    result = call.on(value_of)
    if not _is_followable(result):
        raise _no_rule(call.name)
    anchors = [tensor.value for tensor in call.followed]

    def stopped(tensor: Tensor) -> Any:
        if not tensor.is_floating_point():
            return traced(way, tensor)
        return traced(way, _Stop.apply(call.name, tensor.detach(), *anchors))  # type: ignore[no-untyped-call]

    return mapped(stopped, result)


def held_constant(way: BackwardRules, call: Call) -> Any:
    """The operator's result at the bag, from here on a constant: an attention weight."""
    way.held.add("attention")
    return call.on(constant_of)


@contextlib.contextmanager
def sparse_weights_whole(model: nn.Module) -> Iterator[None]:
    """While it lasts, the sparse maps in ``model`` are one operator each, "sparsemax" and "entmax15"."""
    sparse = [module for module in model.modules() if isinstance(module, SparseAttentionMIL)]
    own = [module.normalise for module in sparse]
    try:
        for module, normalise in zip(sparse, own, strict=True):
            module.normalise = as_operator(normalise)
        yield
    finally:
        for module, normalise in zip(sparse, own, strict=True):
            module.normalise = normalise


def traced_logits(
    model: nn.Module, way: BackwardRules, features: Tensor, xy: Tensor, reference: Tensor | None = None
) -> TracedTensor:
    """The model's logits (C,) for the leaf ``features`` (N, D), with the way back that ``way`` gives them.

    ``reference``: the bag (N, D) that it is compared with. ``model`` is frozen: a parameter is a constant.
    """
    with sparse_weights_whole(model):
        logits = model(traced(way, features, reference), xy).logits
    if not isinstance(logits, TracedTensor):
        raise NoRuleError("depends on its patches through held weights only; this method needs more of them")
    return logits


def small_bag(model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Two patches of ones, (2, D), at (2, 2), as wide as the model's first linear layer; None where it has none."""
    first = next((module for module in model.modules() if isinstance(module, nn.Linear)), None)
    if first is None:
        return None
    xy = torch.arange(2, dtype=first.weight.dtype, device=first.weight.device)[:, None].expand(2, 2)
    return first.weight.new_ones(2, first.in_features), xy


def trial(explain: Callable[[Tensor, Tensor], object], model: nn.Module) -> str | None:
    """Why a method cannot explain ``model``, tried on two patches as wide as its first linear layer takes them."""
    bag = small_bag(model)
    if bag is None:
        return None
    try:
        explain(*bag)
    except NoRuleError as error:
        return error.reason
    except RuntimeError:  # its first linear layer is not the one that sees the features: the bag will tell
        return None
    return None


class _Swap(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ARG004
        return None, grads[0]


class _Stop(Function):
    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor, *anchors: Tensor) -> Tensor:  # noqa: ARG004
        ctx.name = name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ARG004
        raise _no_rule(ctx.name)


def _is_followable(result: Any) -> bool:
    """Whether no value leaves the tensors in it: numbers, lists of numbers and arrays do, sizes and types do not."""
    if isinstance(result, (tuple, list)):
        return all(map(_is_followable, result))
    return isinstance(result, (Tensor, torch.dtype, torch.device, torch.layout, int, str, type(None)))


def _no_rule(name: str) -> NoRuleError:
    return NoRuleError(f"has the operator {name!r} on the way to its logits; this method needs a rule for each")


def _name(function: Callable[..., Any]) -> str:
    if function.__name__ == "__get__":  # of a property, like T or shape
        return str(cast(Any, function).__self__.__name__)
    return function.__name__.strip("_")


def _refuse(call: Call, name: str) -> None:
    """Operators that write into a tensor, as what it held is needed on the way back; and those that draw."""
    writes = name.endswith("_") and not name.startswith("__")
    if writes or call.name in _WRITING or call.kwargs.get("inplace") or call.kwargs.get("out") is not None:
        raise _no_rule(f"{call.name} in place")
    if call.kwargs.get("training"):
        raise _no_rule(f"{call.name} in training")


def as_operator(function: Any) -> Any:
    """``function`` of one tensor, which a followed tensor meets as one operator."""

    def operator(tensor: Tensor) -> Tensor:
        followed = has_torch_function_unary(tensor)
        result: Tensor = handle_torch_function(function, (tensor,), tensor) if followed else function(tensor)
        return result

    return operator
