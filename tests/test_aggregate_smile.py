"""Sparse maps to the simplex against slow definitions, and attention-based MIL with them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_pipeline.aggregate import Additive, MILOutput, models
from wsi_pipeline.aggregate.smile import SparseAttentionMIL
from wsi_pipeline.aggregate.sparse import entmax15, sparsemax
from wsi_pipeline.errors import ConfigError

DIM, CLASSES = 7, 3
MAPS = {"sparsemax": sparsemax, "entmax15": entmax15}
SIZES = [1, 2, 3, 7, 40]


def scores(count: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_on_the_simplex(z: list[float]) -> list[float]:
    """Of the projections onto every face of the simplex that lie in it, the one nearest to z."""
    best, least = [], math.inf
    for size in range(1, len(z) + 1):
        for face in itertools.combinations(range(len(z)), size):
            shift = (1 - sum(z[k] for k in face)) / size
            point = [z[k] + shift if k in face else 0.0 for k in range(len(z))]
            distance = sum((p - v) ** 2 for p, v in zip(point, z, strict=True))
            if min(point) >= 0 and distance < least:
                best, least = point, distance
    return best


def bisected(z: list[float], power: int, factor: float) -> list[float]:
    """max(factor z - t, 0) ** power with the t, found by bisection, at which they sum to 1."""
    low, high = factor * max(z) - 1, factor * max(z)
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(max(factor * v - middle, 0) ** power for v in z)
        low, high = (middle, high) if total > 1 else (low, middle)
    return [max(factor * v - low, 0) ** power for v in z]


# --- the maps --------------------------------------------------------------------------------------------------


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    for count, spread in itertools.product([1, 2, 3, 6, 8], [0.01, 0.5, 3, 100]):
        z = scores(count, spread)
        expected = nearest_on_the_simplex(z.tolist())
        assert sparsemax(z).tolist() == pytest.approx(expected, abs=1e-12), (count, spread)


def test_both_equal_the_threshold_found_by_bisection() -> None:
    for count, spread in itertools.product([*SIZES, 1000], [0.01, 0.5, 3, 100]):
        z = scores(count, spread)
        assert sparsemax(z).tolist() == pytest.approx(bisected(z.tolist(), 1, 1.0), abs=1e-9), (count, spread)
        assert entmax15(z).tolist() == pytest.approx(bisected(z.tolist(), 2, 0.5), abs=1e-9), (count, spread)


def test_literal_answers() -> None:
    z = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    assert sparsemax(z).tolist() == [1, 0, 0]
    assert sparsemax(z / 2).tolist() == pytest.approx([0.75, 0.25, 0])
    assert entmax15(2 * z).tolist() == [1, 0, 0]
    half = math.sqrt(7) / 4  # max(z / 2 - t, 0)^2 of (1, 0): with u = 1/4 + half above and half - 1/4 below
    assert entmax15(z[:2]).tolist() == pytest.approx([(half + 0.25) ** 2, (half - 0.25) ** 2])


@pytest.mark.parametrize("name", MAPS)
def test_equal_scores_have_equal_weights(name: str) -> None:
    assert MAPS[name](torch.zeros(5, dtype=torch.float64)).tolist() == pytest.approx([0.2] * 5, abs=1e-15)
    first, second, third, *rest = MAPS[name](torch.tensor([5.0, 5.0, 4.9, 0, 0], dtype=torch.float64)).tolist()
    assert first == second > third > 0
    assert rest == [0, 0]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_of_a_large_bag_sum_to_one_in_low_precision(name: str, dtype: torch.dtype) -> None:
    for spread in (1e-6, 0.1, 3):
        weights = MAPS[name](scores(50_000, spread).to(dtype))
        assert weights.dtype == torch.float32
        assert float(weights.double().sum()) == pytest.approx(1, abs=1e-5)
        assert not bool(weights.signbit().any())
        assert (spread < 1e-4) == bool((weights > 0).all())


@pytest.mark.parametrize("name", MAPS)
def test_rows_are_mapped_one_by_one(name: str) -> None:
    rows = scores(12, 1).reshape(3, 4)
    assert torch.equal(MAPS[name](rows), torch.stack([MAPS[name](row) for row in rows]))


@pytest.mark.parametrize("name", MAPS)
def test_a_constant_on_all_scores_changes_nothing(name: str) -> None:
    z = scores(40, 1)
    torch.testing.assert_close(MAPS[name](z + 1000), MAPS[name](z), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MAPS)
def test_first_and_second_derivatives_equal_finite_differences(name: str) -> None:
    for count, spread in itertools.product(SIZES, [0.1, 1, 4]):
        z = scores(count, spread, seed=2).requires_grad_()
        assert torch.autograd.gradcheck(MAPS[name], z), (count, spread)
        assert torch.autograd.gradgradcheck(MAPS[name], z), (count, spread)


# --- the model -------------------------------------------------------------------------------------------------


def build(normalise: str = "sparsemax", **options: Any) -> SparseAttentionMIL:
    torch.manual_seed(0)
    small = {"hidden": 10, "attention_dim": 5} | options
    model = models.build("smile", DIM, CLASSES, normalise=normalise, **small)
    assert isinstance(model, SparseAttentionMIL)
    with torch.no_grad():  # sharper attention than the initial weights give
        model.score.weight.mul_(8)
    return model.double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.stack([torch.arange(patches), torch.zeros(patches)], dim=1).double()
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


@torch.no_grad()
def slow_smile(model: SparseAttentionMIL, features: Tensor, normalise: str) -> tuple[list[float], list[float]]:
    """Attention and logits, patch by patch."""
    p = dict(model.named_parameters())

    def layer(name: str, x: Tensor) -> Tensor:
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    embedded = [layer("embed.0", x).clamp(min=0) for x in features]
    raw = []
    for h in embedded:
        units = layer("attend.0", h).tanh()
        if "gate.0.weight" in p:
            units = units * layer("gate.0", h).sigmoid()
        raw.append(float(p["score.weight"][0] @ units))
    attention = bisected(raw, 1, 1.0) if normalise == "sparsemax" else bisected(raw, 2, 0.5)
    pooled = torch.stack([a * h for a, h in zip(attention, embedded, strict=True)]).sum(0)
    return attention, layer("classify", pooled).tolist()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", MAPS)
def test_logits_and_attention_equal_the_written_out_definition(name: str, gated: bool) -> None:
    model = build(name, gated=gated)
    for patches in SIZES:
        features, xy = bag(patches)
        attention, logits = slow_smile(model, features, name)
        out: MILOutput = model(features, xy)
        assert out.attention is not None
        assert out.attention.tolist() == pytest.approx(attention, abs=1e-9)
        assert out.logits.tolist() == pytest.approx(logits, abs=1e-9)


@pytest.mark.parametrize("name", MAPS)
def test_most_patches_have_weight_exactly_zero_and_can_be_left_out(name: str) -> None:
    model, (features, xy) = build(name), bag(200)
    out: MILOutput = model(features, xy)
    assert out.attention is not None
    support = out.attention > 0
    assert 0 < int(support.sum()) < 100
    assert float(out.attention.detach().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(model(features[support], xy[support]).logits, out.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_logits_are_the_sum_of_bias_and_evidence(name: str) -> None:
    model = build(name)
    assert isinstance(model, Additive)
    for patches in SIZES:
        features, xy = bag(patches)
        summed = model.bias() + model.evidence(features, xy).sum(0)
        torch.testing.assert_close(summed, model(features, xy).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_the_order_of_the_patches_does_not_matter(name: str) -> None:
    model, (features, xy) = build(name), bag(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    before, after = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.attention, before.attention[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_gradients_of_the_logits_equal_finite_differences(name: str) -> None:
    model, (features, xy) = build(name), bag(5)
    assert torch.autograd.gradcheck(lambda f: model(f, xy).logits, features.requires_grad_())


@pytest.mark.parametrize("name", MAPS)
def test_bf16_autocast_stays_near_full_precision(name: str) -> None:
    model, (features, xy) = build(name).float(), bag(40)
    full: MILOutput = model(features.float(), xy)
    with torch.autocast("cpu", torch.bfloat16):
        half: MILOutput = model(features.float(), xy)
    assert half.attention is not None
    assert float(half.attention.detach().sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(half.logits.float(), full.logits, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"normalise": "softmax"}, "model option normalise is 'softmax'; it must be one of: sparsemax, entmax15"),
        ({"gated": 1}, "model option gated is 1; it must be true or false"),
        ({"hidden": 0}, "model option hidden is 0; it must be a whole number of at least 1"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        models.build("smile", DIM, 2, **options)
    assert str(refusal.value) == line
