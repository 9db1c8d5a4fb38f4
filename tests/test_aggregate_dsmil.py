"""DSMIL against its definition, patch by patch, its two streams, and the published layout of its parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_pipeline.aggregate import Additive, MILOutput, OwnTraining, models
from wsi_pipeline.aggregate.dsmil import DSMIL
from wsi_pipeline.errors import ConfigError

DIM, CLASSES = 7, 3
FORMS = [(nonlinear, values) for nonlinear in (True, False) for values in ("identity", "linear", "relu")]
SIZES = [1, 2, 17, 60]


def build(nonlinear: bool = True, values: str = "identity", **options: Any) -> DSMIL:
    torch.manual_seed(0)
    model = models.build("dsmil", DIM, CLASSES, nonlinear=nonlinear, values=values, **({"query_dim": 6} | options))
    assert isinstance(model, DSMIL)
    with torch.no_grad():  # sharper attention than the initial weights give
        for parameter in model.b_classifier.q.parameters():
            parameter.mul_(3)
    return model.double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.stack([torch.arange(patches), torch.zeros(patches)], dim=1).double()
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


@torch.no_grad()
def slow_dsmil(model: DSMIL, features: Tensor) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Instance logits (N x C), attention (C x N) and logits (C), one at a time."""
    p = dict(model.named_parameters())

    def layer(name: str, x: Tensor) -> Tensor:
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    instance_logits = [layer("i_classifier.fc.0", x).tolist() for x in features]
    queries, values = [], []
    for x in features:
        if "b_classifier.q.weight" in p:
            queries.append(layer("b_classifier.q", x))
        else:
            queries.append(layer("b_classifier.q.2", layer("b_classifier.q.0", x).clamp(min=0)).tanh())
        v = layer("b_classifier.v.1", x) if "b_classifier.v.1.weight" in p else x
        values.append(v.clamp(min=0) if len(model.b_classifier.v._modules) == 3 else v)
    attention, pooled = [], []
    for c in range(CLASSES):
        critical = max(range(len(features)), key=lambda k: instance_logits[k][c])
        raw = [math.exp(float(q @ queries[critical]) / len(q) ** 0.5) for q in queries]
        attention.append([r / sum(raw) for r in raw])
        pooled.append(torch.stack([a * v for a, v in zip(attention[c], values, strict=True)]).sum(0).tolist())
    logits = []
    for c in range(CLASSES):
        total = float(p["b_classifier.fcc.bias"][c])
        for other in range(CLASSES):
            for d in range(DIM):
                total += float(p["b_classifier.fcc.weight"][c, other, d]) * pooled[other][d]
        logits.append(total)
    return instance_logits, attention, logits


@pytest.mark.parametrize(("nonlinear", "values"), FORMS)
def test_logits_and_attention_equal_the_written_out_definition(nonlinear: bool, values: str) -> None:
    model = build(nonlinear, values)
    for patches in SIZES:
        features, xy = bag(patches)
        instance_logits, attention, logits = slow_dsmil(model, features)
        out: MILOutput = model(features, xy)
        assert out.logits.tolist() == pytest.approx(logits, abs=1e-12)
        expected = torch.tensor(attention, dtype=torch.float64)
        torch.testing.assert_close(out.attention, expected, rtol=0, atol=1e-12)
        slow = torch.tensor(instance_logits, dtype=torch.float64)
        torch.testing.assert_close(model.instance_logits(features, xy), slow, rtol=0, atol=1e-12)


def test_half_of_the_loss_is_the_bags_and_half_the_largest_instance_logits() -> None:
    model = build()
    assert isinstance(model, OwnTraining)
    for patches in SIZES:
        features, xy = bag(patches)
        ((half, logits), (other_half, largest)), extra = model.training_output(features, xy, 1)
        assert (half, other_half, float(extra.detach())) == (0.5, 0.5, 0.0)
        assert torch.equal(logits, model(features, xy).logits)
        rows = slow_dsmil(model, features)[0]
        assert largest.tolist() == pytest.approx([max(row[c] for row in rows) for c in range(CLASSES)], abs=1e-12)


@pytest.mark.parametrize(("nonlinear", "values"), FORMS)
def test_logits_are_the_sum_of_bias_and_evidence(nonlinear: bool, values: str) -> None:
    model = build(nonlinear, values)
    assert isinstance(model, Additive)
    for patches in SIZES:
        features, xy = bag(patches)
        evidence = model.evidence(features, xy)
        assert evidence.shape == (patches, CLASSES)
        torch.testing.assert_close(model.bias() + evidence.sum(0), model(features, xy).logits, rtol=0, atol=1e-12)


def test_the_order_of_the_patches_does_not_matter() -> None:
    model, (features, xy) = build(), bag(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    before, after = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.attention, before.attention[:, order], rtol=0, atol=1e-12)


def test_a_copy_of_the_critical_patch_has_the_same_attention() -> None:
    model, (features, xy) = build(), bag(20)
    critical = int(model.instance_logits(features, xy)[:, 1].argmax())
    twins = torch.cat([features, features[critical : critical + 1]])
    attention = model(twins, torch.cat([xy, xy[:1]])).attention[1]
    assert float(attention[critical].detach()) == pytest.approx(float(attention[-1].detach()), abs=1e-12)


@pytest.mark.parametrize(("nonlinear", "values"), FORMS)
def test_gradients_equal_finite_differences(nonlinear: bool, values: str) -> None:
    model, (features, xy) = build(nonlinear, values), bag(5)
    assert torch.autograd.gradcheck(lambda f: model(f, xy).logits, features.requires_grad_())
    assert torch.autograd.gradcheck(lambda f: model.training_output(f, xy, None).streams[1][1], features)


@pytest.mark.parametrize(("nonlinear", "values"), FORMS)
def test_the_layout_is_the_published_one(nonlinear: bool, values: str) -> None:
    expected = {"i_classifier.fc.0.weight": (2, 512), "i_classifier.fc.0.bias": (2,)}
    for name in ("q.0", "q.2") if nonlinear else ("q",):
        wide = 512 if name != "q.2" else 128
        expected |= {f"b_classifier.{name}.weight": (128, wide), f"b_classifier.{name}.bias": (128,)}
    if values != "identity":
        expected |= {"b_classifier.v.1.weight": (512, 512), "b_classifier.v.1.bias": (512,)}
    expected |= {"b_classifier.fcc.weight": (2, 2, 512), "b_classifier.fcc.bias": (2,)}
    model = models.build("dsmil", 512, 2, nonlinear=nonlinear, values=values)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected


def test_the_default_is_the_published_default() -> None:
    assert models.entry("dsmil").options == {
        "query_dim": 128,
        "nonlinear": True,
        "values": "identity",
        "dropout": 0.0,
    }


def test_dropout_acts_on_the_values_in_training_only() -> None:
    model, (features, xy) = build(values="relu", dropout=0.5), bag(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    first, second = model(features, xy), model(features, xy)
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.attention, second.attention)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"query_dim": 0}, "model option query_dim is 0; it must be a whole number of at least 1"),
        ({"nonlinear": "no"}, "model option nonlinear is 'no'; it must be true or false"),
        ({"values": "tanh"}, "model option values is 'tanh'; it must be one of: identity, linear, relu"),
        ({"dropout": 1}, "model option dropout is 1; it must be at least 0 and less than 1"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        models.build("dsmil", DIM, 2, **options)
    assert str(refusal.value) == line
