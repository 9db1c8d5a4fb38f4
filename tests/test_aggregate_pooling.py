"""Mean, max and attention pooling: each equals its definition, and its logits are the sum of bias and evidence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi_pipeline.aggregate import Additive, MILOutput, models
from wsi_pipeline.errors import ConfigError

DIM, CLASSES = 12, 3
ADDITIVE: list[tuple[str, dict[str, Any]]] = [
    ("mean", {}),
    ("max", {}),
    ("abmil", {"gated": True}),
    ("abmil", {"gated": False}),
]


def build(name: str, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, DIM, CLASSES, hidden=16, **options).double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    side = math.ceil(patches**0.5)
    xy = torch.stack([torch.arange(patches) % side, torch.arange(patches) // side], dim=1).float()
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


def instance_logit(model: nn.Module, patch: Tensor, c: int) -> float:
    """w_c · h_k of one patch (D,), as loops."""
    inner, shift = (model.get_parameter(f"embed.0.{part}").tolist() for part in ("weight", "bias"))
    outer = model.get_parameter("classify.weight").tolist()[c]
    x = patch.tolist()
    total = 0.0
    for j, w in enumerate(outer):
        total += w * max(sum(inner[j][i] * x[i] for i in range(DIM)) + shift[j], 0.0)
    return total


def bias_of(model: nn.Module, c: int) -> float:
    return float(model.get_parameter("classify.bias").tolist()[c])


@pytest.mark.parametrize(("name", "options"), ADDITIVE)
def test_logits_are_the_sum_of_bias_and_evidence(name: str, options: dict[str, Any]) -> None:
    model = build(name, **options)
    assert isinstance(model, Additive)
    for patches in (1, 2, 17, 400):
        features, xy = bag(patches)
        evidence = model.evidence(features, xy)
        assert evidence.shape == (patches, CLASSES)
        torch.testing.assert_close(model.bias() + evidence.sum(0), model(features, xy).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), ADDITIVE)
def test_the_sum_holds_in_single_precision(name: str, options: dict[str, Any]) -> None:
    model, (features, xy) = build(name, **options).float(), bag(400)
    assert isinstance(model, Additive)
    summed = model.bias() + model.evidence(features.float(), xy).sum(0)
    torch.testing.assert_close(summed, model(features.float(), xy).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), ADDITIVE)
def test_the_order_of_the_patches_does_not_matter(name: str, options: dict[str, Any]) -> None:
    model, (features, xy) = build(name, **options), bag(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    before, after = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
    if before.attention is not None:
        torch.testing.assert_close(after.attention, before.attention[..., order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), ADDITIVE)
def test_gradients_of_the_logits_equal_finite_differences(name: str, options: dict[str, Any]) -> None:
    model, (features, xy) = build(name, **options), bag(4)
    assert torch.autograd.gradcheck(lambda f: model(f, xy).logits, features.requires_grad_())


def test_mean_is_the_mean_of_the_instance_logits() -> None:
    model, (features, xy) = build("mean"), bag(3)
    out: MILOutput = model(features, xy)
    assert out.attention is None
    for c in range(CLASSES):
        mean = sum(instance_logit(model, patch, c) for patch in features) / 3
        assert out.logits.tolist()[c] == pytest.approx(mean + bias_of(model, c))


def test_max_is_the_largest_instance_logit_of_each_class() -> None:
    model, (features, xy) = build("max"), bag(5)
    out: MILOutput = model(features, xy)
    assert out.attention is not None
    for c in range(CLASSES):
        logits = [instance_logit(model, patch, c) for patch in features]
        assert out.logits.tolist()[c] == pytest.approx(max(logits) + bias_of(model, c))
        assert out.attention[c].tolist() == [float(v == max(logits)) for v in logits]


def test_of_equal_patches_the_first_wins() -> None:
    model, (features, xy) = build("max"), bag(1)
    out: MILOutput = model(features.repeat(4, 1), xy.repeat(4, 1))
    assert out.attention is not None
    assert out.attention.tolist() == [[1.0, 0.0, 0.0, 0.0]] * CLASSES


@pytest.mark.parametrize("gated", [True, False])
def test_abmil_is_the_formula_of_the_paper(gated: bool) -> None:
    model, (features, xy) = build("abmil", gated=gated, attention_dim=5), bag(6)
    p = {name: value.detach() for name, value in model.named_parameters()}
    raw = []
    for patch in features:
        h = (p["embed.0.weight"] @ patch + p["embed.0.bias"]).clamp(min=0)
        total = 0.0
        for unit in range(5):
            value = math.tanh(float(p["attend.0.weight"][unit] @ h + p["attend.0.bias"][unit]))
            if gated:
                value /= 1 + math.exp(-float(p["gate.0.weight"][unit] @ h + p["gate.0.bias"][unit]))
            total += float(p["score.weight"][0, unit]) * value
        raw.append(math.exp(total))
    weights = [value / sum(raw) for value in raw]
    out: MILOutput = model(features, xy)
    assert out.attention is not None
    assert out.attention.tolist() == pytest.approx(weights, abs=1e-12)
    for c in range(CLASSES):
        pooled = sum(a * instance_logit(model, patch, c) for a, patch in zip(weights, features, strict=True))
        assert out.logits.tolist()[c] == pytest.approx(pooled + bias_of(model, c), abs=1e-12)


def test_abmil_without_a_gate_has_no_gate_parameters() -> None:
    assert not [name for name, _ in build("abmil", gated=False).named_parameters() if "gate" in name]


@pytest.mark.parametrize("name", ["mean", "max", "abmil", "transmil"])
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, again, other = (build(name, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["mean", "max", "abmil"])
def test_dropout_acts_in_training_only(name: str) -> None:
    model, (features, xy) = build(name, dropout=0.5), bag(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    assert not torch.equal(model(features, xy).logits, model(features, xy).logits)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("abmil", {"hidden": 0}, "model option hidden is 0; it must be a whole number of at least 1"),
        ("abmil", {"attention_dim": 1.5}, "model option attention_dim is 1.5; it must be a whole number of at least 1"),
        ("abmil", {"gated": "no"}, "model option gated is 'no'; it must be true or false"),
        ("mean", {"hidden": True}, "model option hidden is True; it must be a whole number of at least 1"),
        ("max", {"dropout": 1}, "model option dropout is 1; it must be at least 0 and less than 1"),
        ("mean", {"dropout": "no"}, "model option dropout is 'no'; it must be at least 0 and less than 1"),
        ("transmil", {"attention": "flash"}, "model option attention is 'flash'; it must be one of: nystrom, exact"),
        ("transmil", {"position": "hex"}, "model option position is 'hex'; it must be one of: sequence, grid"),
        ("transmil", {"hidden": 30}, "model option hidden is 30, which 8 heads cannot share; make it a multiple"),
        (
            "abmil",
            {"gate": True},
            "model 'abmil' has no option 'gate'; it takes: attention_dim, dropout, gated, hidden",
        ),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        models.build(name, DIM, CLASSES, **options)
    assert str(refusal.value) == line
