"""Tensor subclass that keeps a model's forward pass and replaces the backward rule of each operator.

Torch dispatches every operator on a tensor subclass to that class. So the model's own forward pass computes its own
values, bit for bit, while a method (layer-wise relevance propagation, DeepLIFT) decides what the backward pass does at
each operator. An operator without a rule still gives its value, but raises an error if relevance reaches it in the
backward pass: it may lead to attention weights that are held constant, not to the logits. So no operator is silently
treated as linear, neither in the models here nor in plug-ins.
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
# Operators that read a tensor's type and device only: their results contain none of its values.
_NEW_TENSORS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}
_IN_PLACE = {"setitem", *(f"i{name}" for name in ("add", "sub", "mul", "div", "truediv", "pow", "floordiv", "mod"))}


class NoRuleError(ConfigError):
    """The method cannot be applied to the model; ``reason`` is the message without the model's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model {reason}; leave the method out of explain.methods")
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operator in a model's forward pass; at least one of its tensors is traced."""

    name: str  # "softmax", "matmul", "getitem": the same for functions, methods, properties and infix operators
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def on(self, pick: Callable[[Tensor], Tensor]) -> Any:
        """Result of the operator with ``pick`` applied to each tensor argument."""
        return self.function(*map_tensors(pick, self.args), **map_tensors(pick, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """The floating-point tensors among the arguments."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            if value_of(tensor).is_floating_point():
                found.append(tensor)
            return tensor

        map_tensors(note, [*self.args, *self.kwargs.values()])
        return found

    @property
    def traced(self) -> list[TracedTensor]:
        """The traced tensors among them."""
        return [tensor for tensor in self.tensors if isinstance(tensor, TracedTensor)]


Rule = Callable[[Any, Call], Any]


@dataclass(eq=False)
class BackwardRules:
    """A method's backward rules for one bag.

    Attributes
    ----------
    by_operator : mapping of str to rule
        A rule takes the ``BackwardRules`` and a ``Call`` and returns the operator's traced result.
    frozen_kinds : set of str
        "attention", "selection": kinds of intermediate values that were treated as constants.
    """

    by_operator: Mapping[str, Rule]
    frozen_kinds: set[str] = field(default_factory=set)


class TracedTensor(Tensor):
    """An intermediate value of the forward pass, for the bag and for the reference bag."""

    value: Tensor  # part of the autograd graph
    reference: Tensor  # value for the reference bag; equal to ``value`` where the method has no reference
    rules: BackwardRules

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call = Call(_name(func), func, args, kwargs or {})
        if call.name in _NEW_TENSORS:
            return call.on(value_of)
        rules = call.traced[0].rules
        if call.name == "detach" or not torch.is_grad_enabled():
            rules.frozen_kinds.add("selection")
            return call.on(value_of)
        _refuse_unsupported(call, func.__name__)
        rule: Rule = rules.by_operator.get(call.name, without_rule)
        return rule(rules, call)


def map_tensors(pick: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply ``pick`` to each tensor in nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        return pick(tree)
    if isinstance(tree, dict):
        return {name: map_tensors(pick, part) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        return type(tree)([map_tensors(pick, part) for part in tree])
    return tree


def value_of(tensor: Tensor) -> Tensor:
    """The plain value of a traced tensor; any other tensor unchanged."""
    return tensor.value if isinstance(tensor, TracedTensor) else tensor


def constant_of(tensor: Tensor) -> Tensor:
    """The same, detached from the autograd graph."""
    return tensor.value.detach() if isinstance(tensor, TracedTensor) else tensor


def traced(rules: BackwardRules, value: Any, reference: Any = None) -> Any:
    """Trace the floating-point tensors of ``value`` from here on; others (indices, masks) become constants."""
    if isinstance(value, (list, tuple)):
        references = [None] * len(value) if reference is None else reference
        return type(value)([traced(rules, one, other) for one, other in zip(value, references, strict=True)])
    if not value.is_floating_point():
        rules.frozen_kinds.add("selection")
        return value
    found = cast(TracedTensor, value.detach().as_subclass(TracedTensor))
    found.value = value
    found.reference = value.detach() if reference is None else reference
    found.rules = rules
    return found


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value`` in the forward pass, the gradient of ``surrogate`` in the backward pass; both have the same shape."""
    joined: Tensor = _StraightThrough.apply(value, surrogate)  # type: ignore[no-untyped-call]
    return joined


def without_rule(rules: BackwardRules, call: Call) -> Any:
    """Rule that keeps the operator's value and raises ``NoRuleError`` if the backward pass reaches it."""
    result = call.on(value_of)
    if not _can_be_traced(result):
        raise _no_rule(call.name)
    anchors = [tensor.value for tensor in call.traced]

    def stopped(tensor: Tensor) -> Any:
        if not tensor.is_floating_point():
            return traced(rules, tensor)
        return traced(rules, _Stop.apply(call.name, tensor.detach(), *anchors))  # type: ignore[no-untyped-call]

    return map_tensors(stopped, result)


def held_constant(rules: BackwardRules, call: Call) -> Any:
    """Rule that treats the operator's result as a constant from here on, as for attention weights."""
    rules.frozen_kinds.add("attention")
    return call.on(constant_of)


@contextlib.contextmanager
def sparse_weights_as_operators(model: nn.Module) -> Iterator[None]:
    """Make each sparse normalisation in ``model`` a single operator, "sparsemax" or "entmax15", inside the context."""
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
    model: nn.Module, rules: BackwardRules, features: Tensor, xy: Tensor, reference: Tensor | None = None
) -> TracedTensor:
    """Run the model on a traced bag.

    Parameters
    ----------
    model : nn.Module
        Frozen: its parameters are constants.
    rules : BackwardRules
        What the backward pass from the logits does at each operator.
    features : Tensor, (N, D)
        A leaf that requires a gradient.
    xy : Tensor, (N, 2)
        Positions in units of the patch stride.
    reference : Tensor, (N, D), optional
        The bag that DeepLIFT compares with.

    Returns
    -------
    TracedTensor, (C,)

    Raises
    ------
    NoRuleError
        Where an operator has no rule, or the logits depend on the patches through constant weights only.
    """
    with sparse_weights_as_operators(model):
        logits = model(traced(rules, features, reference), xy).logits
    if not isinstance(logits, TracedTensor):
        raise NoRuleError("depends on its patches through constant weights only; this method needs another dependence")
    return logits


def small_bag(model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Two patches of ones, (2, D), at (2, 2), as wide as the model's first linear layer; None where it has none."""
    first = next((module for module in model.modules() if isinstance(module, nn.Linear)), None)
    if first is None:
        return None
    xy = torch.arange(2, dtype=first.weight.dtype, device=first.weight.device)[:, None].expand(2, 2)
    return first.weight.new_ones(2, first.in_features), xy


def misfit_on_small_bag(explain: Callable[[Tensor, Tensor], object], model: nn.Module) -> str | None:
    """Why a method cannot explain ``model``, tried on ``small_bag``; None where it can or this cannot be tried."""
    bag = small_bag(model)
    if bag is None:
        return None
    try:
        explain(*bag)
    except NoRuleError as error:
        return error.reason
    except RuntimeError:  # the first linear layer does not take the features: only a real bag can show a misfit
        return None
    return None


class _StraightThrough(Function):
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


def _can_be_traced(result: Any) -> bool:
    """Whether no value escapes from tensors: Python numbers, lists and arrays would, sizes and types do not."""
    if isinstance(result, (tuple, list)):
        return all(map(_can_be_traced, result))
    return isinstance(result, (Tensor, torch.dtype, torch.device, torch.layout, int, str, type(None)))


def _no_rule(name: str) -> NoRuleError:
    return NoRuleError(f"has the operator {name!r} on the way to its logits; this method needs a rule for each")


def _name(function: Callable[..., Any]) -> str:
    if function.__name__ == "__get__":  # of a property, like T or shape
        return str(cast(Any, function).__self__.__name__)
    return function.__name__.strip("_")


def _refuse_unsupported(call: Call, name: str) -> None:
    """Refuse operators that overwrite a tensor, whose old value the backward pass needs, and random ones."""
    writes = name.endswith("_") and not name.startswith("__")
    if writes or call.name in _IN_PLACE or call.kwargs.get("inplace") or call.kwargs.get("out") is not None:
        raise _no_rule(f"{call.name} in place")
    if call.kwargs.get("training"):
        raise _no_rule(f"{call.name} in training")


def as_operator(function: Any) -> Any:
    """``function`` of one tensor, dispatched as a single operator where the tensor is traced."""

    def operator(tensor: Tensor) -> Tensor:
        dispatched = has_torch_function_unary(tensor)
        result: Tensor = handle_torch_function(function, (tensor,), tensor) if dispatched else function(tensor)
        return result

    return operator
