"""DeepLIFT: every rule by itself, completeness on every model, the frozen remainder, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsi_pipeline.aggregate import MILOutput, models, ppeg
from wsi_pipeline.aggregate.sparse import entmax15, sparsemax
from wsi_pipeline.aggregate.transmil import TransMIL
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.propagation.deeplift_rules import COMPLETE, FROZEN_ATTENTION
from wsi_pipeline.explain.propagation.traced_tensor import (
    BackwardRules,
    NoRuleError,
    as_operator,
    traced,
    traced_logits,
)

DIM = 6
SMALL = {"hidden": 16, "attention_dim": 4, "heads": 2, "landmarks": 4, "nodes": 8, "query_dim": 5}
TRANSMILS: list[tuple[str, dict[str, Any]]] = [
    ("transmil", {"attention": attention, "position": position})
    for attention in ("nystrom", "exact")
    for position in ("sequence", "grid")
]
COMPLETE_MODELS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in models.names() if name != "transmil"],
    ("abmil", {"gated": False}),
    ("abmil", {"hidden": None}),
    ("additive", {"centred": False}),
    ("clam_mb", {"gated": False}),
    ("smile", {"normalise": "entmax15"}),
    ("dsmil", {"values": "relu"}),
    ("dsmil", {"values": "linear", "nonlinear": False}),
    ("dtfd", {"distill": "maxs"}),
    ("dtfd", {"distill": "maxmins"}),
]


def build(name: str, classes: int = 2, sharper: float = 1.5, **options: Any) -> nn.Module:
    """A small model in double precision, no parameter 0, its attention sharper than that of initial weights."""
    torch.manual_seed(0)
    takes = models.entry(name).options
    known = {option: value for option, value in SMALL.items() if option in takes}
    model = models.build(name, DIM, classes, **(known | options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(sharper * parameter + 0.1 * torch.randn_like(parameter))
    return model


def bag(patches: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(patches)
    features = torch.randn(patches, DIM, generator=generator, dtype=torch.float64)
    return features, torch.stack([index % 5, index // 5], 1).double()


def attribute(model: nn.Module, features: Tensor, xy: Tensor, target: int = 1, baseline: str = "zero") -> Attribution:
    explainer = explainers.build("deeplift", baseline=baseline)
    return explainer(ExplainedModel(model), features, xy, target)


# --- each rule by itself ---------------------------------------------------------------------------------------

Operator = Callable[..., Tensor]


def multipliers(
    operator: Operator, now: list[Tensor], before: list[Tensor], weights: Tensor | None = None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Multipliers of sum(weights * output), and the rule's outputs at ``now`` and at ``before``."""
    rules = BackwardRules(COMPLETE)
    leaves = [tensor.clone().requires_grad_() for tensor in now]
    output = operator(*[traced(rules, leaf, reference) for leaf, reference in zip(leaves, before, strict=True)])
    weights = torch.ones_like(output.value) if weights is None else weights  # type: ignore[attr-defined]
    total = (output.value * weights).sum()  # type: ignore[attr-defined]
    return list(torch.autograd.grad(total, leaves)), output.value.detach(), output.reference  # type: ignore[attr-defined]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, B = normal(4, 3, seed=8), normal(4, seed=9)
KERNEL, PIXELS = normal(4, 3, 2, seed=8), normal(4, 3, 2, 2, seed=8)
OPERATORS: dict[str, tuple[Operator, list[tuple[int, ...]]]] = {
    "add": (lambda x, y: 2 + x + y, [(2, 3), (3,)]),
    "sub": (lambda x, y: x - y, [(2, 3), (3,)]),
    "rsub": (lambda x: 1 - x, [(2, 3)]),
    "neg": (lambda x: -x, [(2, 3)]),
    "sum": (lambda x: x.sum(0), [(2, 3)]),
    "mean": (lambda x: x.mean(0), [(2, 3)]),
    "cat": (lambda x, y: torch.cat([x, B[None, :3], y]), [(2, 3), (1, 3)]),
    "stack": (lambda x, y: torch.stack([x, y]), [(2, 3), (2, 3)]),
    "index_add": (lambda x: x.new_zeros(2, 3).index_add(0, torch.tensor([1, 1]), x), [(2, 3)]),
    "getitem": (lambda x: x[[1, 1, 0], 1:], [(2, 3)]),
    "select": (lambda x: x.select(0, 1), [(2, 3)]),
    "narrow": (lambda x: x.narrow(1, 1, 2), [(2, 3)]),
    "index_select": (lambda x: x.index_select(1, torch.tensor([2, 0])), [(2, 3)]),
    "gather": (lambda x: x.gather(1, torch.tensor([[2], [0]])), [(2, 3)]),
    "chunk": (lambda x: x.chunk(2)[1], [(2, 3)]),
    "split": (lambda x: x.split(1)[1], [(2, 3)]),
    "unbind": (lambda x: x.unbind()[1], [(2, 3)]),
    "t": (lambda x: x.t(), [(2, 3)]),
    "T": (lambda x: x.T, [(2, 3)]),
    "mT": (lambda x: x.mT, [(2, 3)]),
    "view": (lambda x: x.view(3, 2), [(2, 3)]),
    "reshape": (lambda x: x.reshape(6), [(2, 3)]),
    "permute": (lambda x: x.permute(1, 0), [(2, 3)]),
    "transpose": (lambda x: x.transpose(0, 1), [(2, 3)]),
    "flatten": (lambda x: x.flatten(), [(2, 3)]),
    "unflatten": (lambda x: x.unflatten(1, (3, 1)), [(2, 3)]),
    "squeeze": (lambda x: x.squeeze(0), [(1, 3)]),
    "unsqueeze": (lambda x: x.unsqueeze(0), [(2, 3)]),
    "expand": (lambda x: x.expand(2, 3), [(1, 3)]),
    "expand_as": (lambda x, y: x.expand_as(y) + y, [(1, 3), (2, 3)]),
    "clone": (lambda x: x.clone(), [(2, 3)]),
    "contiguous": (lambda x: x.T.contiguous(), [(2, 3)]),
    "to": (lambda x: x.to(torch.float64), [(2, 3)]),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), [(2, 3)]),
    "masked_fill": (lambda x: x.masked_fill(torch.tensor([True, False, False]), 7), [(2, 3)]),
    "where": (lambda x, y: torch.where(torch.tensor([True, False, False]), x, y), [(2, 3), (2, 3)]),
    "pad": (lambda x: F.pad(x, (1, 1), value=3), [(2, 3)]),
    "relu": (torch.relu, [(9,)]),
    "leaky_relu": (F.leaky_relu, [(9,)]),
    "elu": (F.elu, [(9,)]),
    "gelu": (F.gelu, [(9,)]),
    "silu": (F.silu, [(9,)]),
    "softplus": (F.softplus, [(9,)]),
    "tanh": (torch.tanh, [(9,)]),
    "sigmoid": (torch.sigmoid, [(9,)]),
    "log_sigmoid": (F.logsigmoid, [(9,)]),
    "exp": (torch.exp, [(9,)]),
    "expm1": (torch.expm1, [(9,)]),
    "log": (lambda x: x.exp().log(), [(9,)]),
    "log1p": (lambda x: x.exp().log1p(), [(9,)]),
    "sqrt": (lambda x: x.exp().sqrt(), [(9,)]),
    "rsqrt": (lambda x: x.exp().rsqrt(), [(9,)]),
    "square": (torch.square, [(9,)]),
    "abs": (torch.abs, [(9,)]),
    "reciprocal": (lambda x: x.exp().reciprocal(), [(9,)]),
    "rdiv": (lambda x: 2 / x.exp(), [(9,)]),
    "pow": (lambda x: x**3, [(9,)]),
    "clamp": (lambda x: x.clamp(min=-0.5), [(9,)]),
    "linear": (lambda x: F.linear(x, W, B), [(2, 3)]),
    "conv1d": (lambda x: F.conv1d(x, KERNEL, B), [(1, 3, 5)]),
    "conv2d": (lambda x: F.conv2d(x, PIXELS, B, padding=1), [(1, 3, 4, 4)]),
    "mul": (lambda x, y: x * y, [(2, 3), (3,)]),
    "matmul": (lambda x, y: x @ y, [(2, 3), (3, 4)]),
    "mm": (torch.mm, [(2, 3), (3, 4)]),
    "bmm": (torch.bmm, [(2, 2, 3), (2, 3, 4)]),
    "mv": (torch.mv, [(2, 3), (3,)]),
    "div": (lambda x, y: x / y.exp(), [(2, 3), (3,)]),
    "max": (lambda x: x.max(dim=1, keepdim=True).values, [(1, 1)]),
    "layer_norm": (lambda x: F.layer_norm(x, (5,), normal(5, seed=8), normal(5, seed=9)), [(2, 5)]),
    "softmax": (lambda x: x.softmax(1), [(2, 5)]),
    "sparsemax": (as_operator(sparsemax), [(2, 5)]),
    "entmax15": (as_operator(entmax15), [(2, 5)]),
    "scaled_dot_product_attention": (
        lambda v: F.scaled_dot_product_attention(normal(1, 2, 3, 4), normal(1, 2, 5, 4), v),
        [(1, 2, 5, 4)],
    ),
}


def test_every_rule_has_an_operator_here() -> None:
    assert set(OPERATORS) == set(COMPLETE) == set(FROZEN_ATTENTION)


@pytest.mark.parametrize("name", OPERATORS)
def test_multipliers_times_changes_are_the_outputs_change(name: str) -> None:
    operator, shapes = OPERATORS[name]
    for size in (1, 4):
        now = [size * normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        before = [size * normal(*shape, seed=5 + i) for i, shape in enumerate(shapes)]
        expected, reference = operator(*now), operator(*before)
        weights = normal(*expected.shape, seed=7)
        found, value, at_reference = multipliers(operator, now, before, weights)
        assert torch.equal(value, expected)
        assert torch.equal(at_reference, reference)
        shares = sum(((x - x0) * m).sum() for x, x0, m in zip(now, before, found, strict=True))
        change = ((expected - reference) * weights).sum()
        assert float(shares) == pytest.approx(change.item(), rel=1e-11, abs=1e-11), size
        assert change.abs() > 1e-3


def test_without_a_change_multipliers_are_the_gradient() -> None:
    differing = []
    for name, (operator, shapes) in OPERATORS.items():
        now = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        weights = normal(*operator(*now).shape, seed=7)
        leaves = [tensor.clone().requires_grad_() for tensor in now]
        gradients = torch.autograd.grad((operator(*leaves) * weights).sum(), leaves)
        found = multipliers(operator, now, now, weights)[0]
        if not all(torch.allclose(m, g, rtol=1e-9, atol=1e-12) for m, g in zip(found, gradients, strict=True)):
            differing.append(name)
    assert differing == []


def test_the_rescale_rule_in_numbers() -> None:
    def of(operator: Operator, now: float, before: float) -> float:
        found, _, _ = multipliers(operator, [torch.tensor([now]).double()], [torch.tensor([before]).double()])
        return found[0].item()

    assert of(torch.relu, 3, -1) == 0.75
    assert of(torch.relu, -3, 1) == 0.25
    assert of(torch.relu, 3, 1) == 1
    assert of(torch.relu, -3, -1) == 0
    assert of(torch.square, 5, 3) == 8
    assert of(torch.reciprocal, 4, 2) == -0.125
    assert of(torch.tanh, 1, 0) == pytest.approx(math.tanh(1))
    assert of(torch.exp, 1, 0) == pytest.approx(math.e - 1)
    assert of(torch.sigmoid, 2, 0) == pytest.approx((1 / (1 + math.exp(-2)) - 0.5) / 2)


def test_the_product_rule_in_numbers() -> None:
    u, v, u0, v0 = (torch.tensor([number]).double() for number in (2, 7, 6, 3))
    assert multipliers(torch.mul, [u, v], [u0, v0])[0] == [torch.tensor([5.0]), torch.tensor([4.0])]  # the means
    of_u, of_v = multipliers(torch.div, [u, v], [u0, v0])[0]
    assert of_u.item() == pytest.approx((1 / 7 + 1 / 3) / 2)
    assert of_v.item() == pytest.approx(4 * -1 / 21)


def test_the_winner_of_a_maximum_is_compared_with_its_own_reference() -> None:
    now, before = torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[9.0, 4.0, 0.0]])
    found, value, reference = multipliers(lambda x: x.max(1).values, [now], [before])
    assert found[0].tolist() == [[0, 1, 0]]
    assert (value.tolist(), reference.tolist()) == ([5], [4])


# --- weights that sum to 1 -------------------------------------------------------------------------------------

ROOTS: dict[str, tuple[Callable[[float], float], float]] = {  # p = f(scale z - t)
    "softmax": (math.exp, 1),
    "sparsemax": (lambda u: max(u, 0), 1),
    "entmax15": (lambda u: max(u, 0) ** 2, 0.5),
}


@pytest.mark.parametrize("name", ROOTS)
def test_changes_of_weights_are_distributed_as_in_the_formula(name: str) -> None:
    """The threshold found by bisection; r_k = dp_k / du_k; p_i changes by r_i (du_i - sum_k r_k du_k / sum_k r_k)."""
    f, scale = ROOTS[name]

    def above_threshold(scores: list[float]) -> list[float]:
        low, high = -50.0, 50.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(f(scale * z - middle) for z in scores) > 1 else (low, middle)
        return [scale * z - low for z in scores]

    now, before, weights = normal(1, 5, seed=1), normal(1, 5, seed=2), normal(1, 5, seed=3)
    u, u0, w = above_threshold(now[0].tolist()), above_threshold(before[0].tolist()), weights[0].tolist()
    rates = [(f(a) - f(b)) / (a - b) for a, b in zip(u, u0, strict=True)]
    expected = [scale * sum(w[i] * rates[i] * ((i == k) - rates[k] / sum(rates)) for i in range(5)) for k in range(5)]
    found, _, _ = multipliers(OPERATORS[name][0], [now], [before], weights)
    np.testing.assert_allclose(found[0][0], expected, atol=1e-10)


@pytest.mark.parametrize("name", ROOTS)
def test_a_constant_added_to_all_scores_changes_neither_weights_nor_multipliers(name: str) -> None:
    operator, now, before, weights = OPERATORS[name][0], normal(2, 5), normal(2, 5, seed=1), normal(2, 5, seed=2)
    plain, shifted = (multipliers(operator, [now + shift], [before], weights)[0][0] for shift in (0, 30))
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-11)
    torch.testing.assert_close(plain.sum(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_multipliers_of_sharp_attention_stay_small_in_single_precision() -> None:
    """The reason for this rule: exp times 1 / sum has terms of 1e9 here, which cancel to 0.3."""
    now, before = normal(1, 1000).float(), torch.zeros(1, 1000)
    now[0, :20] += 25
    weights = normal(1, 1000, seed=1).float()
    found, value, reference = multipliers(lambda x: x.softmax(1), [now], [before], weights)
    shares = found[0] * (now - before)
    assert shares.abs().sum() < 20
    assert shares.sum().item() == pytest.approx(((value - reference) * weights).sum().item(), abs=1e-4)


# --- completeness ----------------------------------------------------------------------------------------------


def change(model: nn.Module, features: Tensor, xy: Tensor, target: int, baseline: str) -> float:
    """t(x) - t(x0)."""
    start = torch.zeros_like(features) if baseline == "zero" else features.mean(0).expand_as(features)
    with torch.no_grad():
        return (contrast(model(features, xy).logits, target) - contrast(model(start, xy).logits, target)).item()


@pytest.mark.parametrize(("name", "options"), COMPLETE_MODELS)
def test_scores_add_up_to_the_targets_change(name: str, options: dict[str, Any]) -> None:
    for classes, sharper in product((2, 3), (1.5, 3)):
        model = build(name, classes, sharper, **options)
        for patches, baseline in product((1, 2, 17, 90), ("zero", "mean")):
            features, xy = bag(patches)
            found = attribute(model, features, xy, classes - 1, baseline).scores.sum().item()
            expected = change(model, features, xy, classes - 1, baseline)
            assert found == pytest.approx(expected, abs=1e-10), (classes, sharper, patches, baseline)


@pytest.mark.parametrize(("name", "options"), TRANSMILS)
def test_the_frozen_attention_of_transmil_has_the_remainder(name: str, options: dict[str, Any]) -> None:
    model = build(name, classes=3, **options)
    for baseline in ("zero", "mean"):
        for patches in (1, 2, 17, 90):
            features, xy = bag(patches)
            found = attribute(model, features, xy, 0, baseline)
            assert set(found.residual) <= {"baseline", "frozen attention"}
            whole = found.scores.sum().item() + sum(found.residual.values())
            assert whole == pytest.approx(contrast(model(features, xy).logits, 0).item(), abs=1e-10)
        assert abs(found.residual["frozen attention"]) > 1e-6


@pytest.mark.parametrize(("name", "options"), TRANSMILS)
def test_attention_that_does_not_depend_on_patches_leaves_no_remainder(name: str, options: dict[str, Any]) -> None:
    """With queries of 0, attention is uniform whatever the patches, so freezing it changes nothing."""
    model = build(name, **options)
    assert isinstance(model, TransMIL)
    with torch.no_grad():
        for layer in (model.layer1, model.layer2):
            layer.attn.to_qkv.weight.chunk(3)[0].zero_()
    features, xy = bag(20)
    found = attribute(model, features, xy)
    assert found.residual.get("frozen attention", 0) == pytest.approx(0, abs=1e-12)
    assert found.scores.sum().item() == pytest.approx(change(model, features, xy, 1, "zero"), abs=1e-12)
    assert found.scores.abs().max() > 1e-3


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_groups_of_channels_change_nothing(baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large raster is processed in groups of channels, and again for the gradient."""
    model, (features, xy) = build("transmil", position="grid"), bag(20)
    whole = attribute(model, features, xy, baseline=baseline)
    monkeypatch.setattr(ppeg, "RASTER_VALUES", 60)
    grouped = attribute(model, features, xy, baseline=baseline)
    torch.testing.assert_close(grouped.scores, whole.scores, rtol=0, atol=1e-12)


def test_for_mean_pooling_a_score_is_the_patchs_own_change() -> None:
    model, (features, xy) = build("mean"), bag(12)
    own = contrast(torch.cat([model(features[k : k + 1], xy[:1]).logits[None] for k in range(12)]), 1)
    start = contrast(model(torch.zeros(1, DIM).double(), xy[:1]).logits, 1)
    torch.testing.assert_close(attribute(model, features, xy).scores, (own - start) / 12, rtol=0, atol=1e-12)


def test_identical_patches_score_zero_against_their_mean() -> None:
    features, xy = bag(1)
    scores = attribute(build("abmil"), features.expand(9, DIM), xy.expand(9, 2), baseline="mean").scores
    assert scores.abs().max() < 1e-12


class PositionBonus(nn.Module):
    """The best patch by feature plus position: for patches of zeros the position decides."""

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        best = (features[:, 0] + xy[:, 0]).max(dim=0).values
        return MILOutput(torch.stack([torch.zeros_like(features[0, 0]), best]), None)


def test_a_selection_that_differs_for_the_baseline_leaves_a_remainder() -> None:
    features = torch.tensor([[9.0], [1.0], [0.0]])
    xy = torch.tensor([[0.0, 0], [1, 0], [5, 0]])
    found = attribute(PositionBonus(), features, xy)
    assert found.scores.tolist() == [9, 0, 0]
    assert found.residual == {"baseline": 5, "frozen selection": -5}  # t(x) is 9


# --- the model unchanged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [*COMPLETE_MODELS, *TRANSMILS])
def test_the_traced_forward_pass_is_the_models_own_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    model = build(name, **options).float().requires_grad_(False)
    features, xy = (part.float() for part in bag(50))
    rules = BackwardRules(FROZEN_ATTENTION if name == "transmil" else COMPLETE)
    start = torch.zeros_like(features)
    found = traced_logits(model, rules, features.clone().requires_grad_(), xy, start)
    assert torch.equal(found.value, model(features, xy).logits)
    if not rules.frozen_kinds:
        assert torch.equal(found.reference, model(start, xy).logits)


class WithoutRule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, 2)

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        return MILOutput(self.layer(features).cumsum(0).logsumexp(0), None)


def test_an_operator_without_a_rule_is_refused_and_not_treated_as_linear() -> None:
    model = WithoutRule().double()
    reason = explainers.build("deeplift").fits(ExplainedModel(model))
    assert reason == "has the operator 'logsumexp' on the way to its logits; this method needs a rule for each"
    with pytest.raises(NoRuleError, match="leave the method out"):
        attribute(model, *bag(4))


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero, mean"):
        explainers.build("deeplift", baseline="noise")
