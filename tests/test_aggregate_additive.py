"""Additive MIL against its definition, patch by patch; its logits are the sum of its patches' logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_pipeline.aggregate import Additive, MILOutput, models
from wsi_pipeline.aggregate.additive import AdditiveMIL
from wsi_pipeline.errors import ConfigError

DIM, CLASSES = 7, 3
FORMS = [(gated, centred) for gated in (True, False) for centred in (True, False)]
SIZES = [1, 2, 17, 60]


def build(gated: bool = True, centred: bool = True, **options: Any) -> AdditiveMIL:
    torch.manual_seed(0)
    small = {"hidden": 10, "attention_dim": 5, "classifier_dim": 6} | options
    model = models.build("additive", DIM, CLASSES, gated=gated, centred=centred, **small)
    assert isinstance(model, AdditiveMIL)
    with torch.no_grad():  # sharper attention than the initial weights give
        model.score.weight.mul_(8)
    return model.double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.stack([torch.arange(patches), torch.zeros(patches)], dim=1).double()
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


@torch.no_grad()
def slow_additive(model: AdditiveMIL, features: Tensor) -> tuple[list[float], list[list[float]], list[float]]:
    """Attention, evidence (N x C) and logits, patch by patch."""
    p = dict(model.named_parameters())

    def layer(name: str, x: Tensor) -> Tensor:
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    def psi(x: Tensor) -> list[float]:
        values: list[float] = layer("outer", layer("inner", x).clamp(min=0)).tolist()
        return values

    embedded = [layer("embed.0", x).clamp(min=0) for x in features]
    raw = []
    for h in embedded:
        units = layer("attend.0", h).tanh()
        if "gate.0.weight" in p:
            units = units * layer("gate.0", h).sigmoid()
        raw.append(math.exp(float(p["score.weight"][0] @ units)))
    attention = [r / sum(raw) for r in raw]
    at_zero = psi(torch.zeros_like(embedded[0]))
    evidence = []
    for a, h in zip(attention, embedded, strict=True):
        row = psi(a * h)
        evidence.append([s - n for s, n in zip(row, at_zero, strict=True)] if model.centred else row)
    start = p["outer.bias"].tolist() if model.centred else [0.0] * CLASSES
    return attention, evidence, [start[c] + sum(row[c] for row in evidence) for c in range(CLASSES)]


@pytest.mark.parametrize(("gated", "centred"), FORMS)
def test_logits_attention_and_evidence_equal_the_written_out_definition(gated: bool, centred: bool) -> None:
    model = build(gated, centred)
    for patches in SIZES:
        features, xy = bag(patches)
        attention, evidence, logits = slow_additive(model, features)
        out: MILOutput = model(features, xy)
        assert out.attention is not None
        assert out.attention.tolist() == pytest.approx(attention, abs=1e-12)
        assert out.logits.tolist() == pytest.approx(logits, abs=1e-12)
        expected = torch.tensor(evidence, dtype=torch.float64)
        torch.testing.assert_close(model.evidence(features, xy), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("gated", "centred"), FORMS)
def test_logits_are_the_sum_of_bias_and_evidence(gated: bool, centred: bool) -> None:
    model = build(gated, centred)
    assert isinstance(model, Additive)
    for patches in SIZES:
        features, xy = bag(patches)
        evidence = model.evidence(features, xy)
        assert evidence.shape == (patches, CLASSES)
        torch.testing.assert_close(model.bias() + evidence.sum(0), model(features, xy).logits, rtol=0, atol=1e-12)


def test_more_patches_of_small_weight_shift_the_published_logits_and_not_the_centred_ones() -> None:
    for centred in (True, False):
        model, (features, xy) = build(centred=centred), bag(5)
        with torch.no_grad():
            model.inner.bias.fill_(1.0)
            model.score.weight.zero_()  # all patches have equal weight
            alike = [model(features[:1].repeat(n, 1), xy[:1].repeat(n, 1)).logits for n in (1000, 2000)]
        drift = float((alike[1] - alike[0]).abs().max())
        assert (drift < 1e-2) == centred
        assert (drift > 10) != centred


def test_evidence_is_not_the_weight_times_a_constant() -> None:
    """psi(a h) differs from a psi(h)."""
    model, (features, xy) = build(), bag(1)
    with torch.no_grad():
        model.inner.bias.fill_(-0.5)
    features = 5 * features
    single = model.evidence(features, xy)
    halves = model.evidence(features.repeat(2, 1), xy.repeat(2, 1)).sum(0, keepdim=True)
    assert not torch.allclose(single, halves, atol=1e-3)


def test_the_order_of_the_patches_does_not_matter() -> None:
    model, (features, xy) = build(), bag(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    before, after = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.attention, before.attention[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("gated", "centred"), FORMS)
def test_gradients_equal_finite_differences(gated: bool, centred: bool) -> None:
    model, (features, xy) = build(gated, centred), bag(4)
    assert torch.autograd.gradcheck(lambda f: model(f, xy).logits, features.requires_grad_())


def test_the_sum_holds_in_single_precision() -> None:
    model, (features, xy) = build().float(), bag(400)
    summed = model.bias() + model.evidence(features.float(), xy).sum(0)
    torch.testing.assert_close(summed, model(features.float(), xy).logits, rtol=0, atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    model, (features, xy) = build(dropout=0.5), bag(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    assert not torch.equal(model(features, xy).logits, model(features, xy).logits)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"classifier_dim": 0}, "model option classifier_dim is 0; it must be a whole number of at least 1"),
        ({"centred": "no"}, "model option centred is 'no'; it must be true or false"),
        ({"dropout": 1}, "model option dropout is 1; it must be at least 0 and less than 1"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        models.build("additive", DIM, 2, **options)
    assert str(refusal.value) == line
