"""CLAM against its definition, patch by patch, its instance loss, and the published layout of its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_pipeline.aggregate import Additive, MILOutput, OwnTraining, models
from wsi_pipeline.aggregate.clam import CLAM, smooth_svm
from wsi_pipeline.errors import ConfigError

DIM, HIDDEN, ATTENTION = 7, 10, 5
NAMES = ["clam_sb", "clam_mb"]
SIZES = [1, 2, 3, 17, 60]


def build(name: str, classes: int = 3, **options: Any) -> CLAM:
    torch.manual_seed(0)
    small = {"hidden": HIDDEN, "attention_dim": ATTENTION, "k_sample": 4} | options
    model = models.build(name, DIM, classes, **small)
    assert isinstance(model, CLAM)
    with torch.no_grad():  # sharper attention than the initial weights give
        for key, value in model.named_parameters():
            if "attention_c.weight" in key or "module.3.weight" in key:
                value.mul_(8)
    return model.double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.stack([torch.arange(patches), torch.zeros(patches)], dim=1).double()
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


# --- the definition --------------------------------------------------------------------------------------------


def layer(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [power / sum(powers) for power in powers]


@torch.no_grad()
def slow_attention(model: CLAM, features: Tensor) -> tuple[list[Tensor], list[list[float]]]:
    """h of each patch, and each class's attention (the same for all classes with a single branch)."""
    p = dict(model.named_parameters())
    embedded = [layer(p, "attention_net.0", x).clamp(min=0) for x in features]
    scores = []
    for h in embedded:
        if "attention_net.3.attention_c.weight" in p:
            a = layer(p, "attention_net.3.attention_a.0", h).tanh()
            b = layer(p, "attention_net.3.attention_b.0", h).sigmoid()
            scores.append(layer(p, "attention_net.3.attention_c", a * b).tolist())
        else:
            scores.append(layer(p, "attention_net.3.module.3", layer(p, "attention_net.3.module.0", h).tanh()).tolist())
    branches = [softmax([row[branch] for row in scores]) for branch in range(len(scores[0]))]
    classes = len(model.instance_classifiers)
    return embedded, branches if model.multi else branches * classes


@torch.no_grad()
def slow_logits(model: CLAM, features: Tensor) -> list[float]:
    p = dict(model.named_parameters())
    embedded, attention = slow_attention(model, features)
    logits = []
    for c, weights in enumerate(attention):
        pooled = torch.stack([a * h for a, h in zip(weights, embedded, strict=True)]).sum(0)
        if model.multi:
            logits.append(float(layer(p, f"classifiers.{c}", pooled)))
        else:
            logits.append(float(layer(p, "classifiers", pooled)[c]))
    return logits


def slow_loss_of_one(scores: list[float], target: int, kind: str) -> float:
    """Loss of one patch's two scores."""
    if kind == "ce":
        return -math.log(softmax(scores)[target])
    return math.log(sum(math.exp(s + (j != target) - scores[target]) for j, s in enumerate(scores)))


@torch.no_grad()
def slow_instance_loss(model: CLAM, features: Tensor, label: int) -> float:
    p = dict(model.named_parameters())
    embedded, attention = slow_attention(model, features)
    total = 0.0
    for c, weights in enumerate(attention):
        order = sorted(range(len(weights)), key=lambda k: -weights[k])
        if c == label:
            k = min(model.k_sample, len(order) // 2)
            labelled = [(i, 1) for i in order[: max(1, k)]] + [(i, 0) for i in order[len(order) - k :]]
        elif model.subtyping:
            labelled = [(i, 0) for i in order[: model.k_sample]]
        else:
            continue
        losses = []
        for i, target in labelled:
            scores = layer(p, f"instance_classifiers.{c}", embedded[i]).tolist()
            losses.append(slow_loss_of_one(scores, target, model.inst_loss))
        total += sum(losses) / len(losses)
    return total / len(attention) if model.subtyping else total


# --- claims ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_attention_equal_the_written_out_definition(name: str, gated: bool) -> None:
    model = build(name, gated=gated)
    for patches in SIZES:
        features, xy = bag(patches)
        out: MILOutput = model(features, xy)
        assert out.logits.tolist() == pytest.approx(slow_logits(model, features), abs=1e-12)
        attention = torch.tensor(slow_attention(model, features)[1], dtype=torch.float64)
        torch.testing.assert_close(out.attention, attention if name == "clam_mb" else attention[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("inst_loss", ["svm", "ce"])
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_training_adds_the_instance_loss(name: str, subtyping: bool, inst_loss: str) -> None:
    model = build(name, subtyping=subtyping, inst_loss=inst_loss, bag_weight=0.6)
    assert isinstance(model, OwnTraining)
    for patches, label in product(SIZES, range(3)):
        features, xy = bag(patches)
        ((weight, logits),), extra = model.training_output(features, xy, label)
        assert weight == 0.6
        assert torch.equal(logits, model(features, xy).logits)
        expected = 0.4 * slow_instance_loss(model, features, label)
        assert float(extra.detach()) == pytest.approx(expected, abs=1e-12), (patches, label)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_label_there_is_no_instance_loss(name: str) -> None:
    model, (features, xy) = build(name, subtyping=True), bag(17)
    streams, extra = model.training_output(features, xy, None)
    assert [weight for weight, _ in streams] == [0.7]
    assert float(extra.detach()) == 0


def test_no_patch_of_a_small_bag_counts_as_both_in_and_out_of_the_class() -> None:
    model, (features, xy) = build("clam_sb", k_sample=8), bag(3)
    embedded, attention = slow_attention(model, features)
    most, least = attention[1].index(max(attention[1])), attention[1].index(min(attention[1]))
    scores = [layer(dict(model.named_parameters()), "instance_classifiers.1", h).tolist() for h in embedded]
    expected = (slow_loss_of_one(scores[most], 1, "svm") + slow_loss_of_one(scores[least], 0, "svm")) / 2
    assert float(model.training_output(features, xy, 1).extra.detach()) == pytest.approx(0.3 * expected, abs=1e-12)


def test_the_smooth_svm_nears_the_hinge_loss_at_large_margins_and_exceeds_it_at_margin_zero() -> None:
    far = torch.tensor([[30.0, 0.0], [0.0, 30.0]], dtype=torch.float64)
    assert float(smooth_svm(far, torch.tensor([0, 1]))) == pytest.approx(0, abs=1e-12)
    assert float(smooth_svm(far, torch.tensor([1, 0]))) == pytest.approx(31, abs=1e-12)
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert float(smooth_svm(even, torch.tensor([0]))) == pytest.approx(math.log(1 + math.e), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_instance_loss_reaches_the_embedding_and_not_the_attention(name: str) -> None:
    model, (features, xy) = build(name), bag(17)
    model.training_output(features, xy, 2).extra.backward()
    reached = {key for key, value in model.named_parameters() if value.grad is not None and bool(value.grad.any())}
    assert reached == {
        "attention_net.0.weight",
        "attention_net.0.bias",
        "instance_classifiers.2.weight",
        "instance_classifiers.2.bias",
    }


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_sum_of_bias_and_evidence(name: str) -> None:
    model = build(name)
    assert isinstance(model, Additive)
    for patches in SIZES:
        features, xy = bag(patches)
        evidence = model.evidence(features, xy)
        assert evidence.shape == (patches, 3)
        torch.testing.assert_close(model.bias() + evidence.sum(0), model(features, xy).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_instance_probabilities_are_those_of_the_instance_classifiers(name: str) -> None:
    model, (features, xy) = build(name), bag(4)
    p = dict(model.named_parameters())
    embedded, _ = slow_attention(model, features)
    expected = [[softmax(layer(p, f"instance_classifiers.{c}", h).tolist())[1] for c in range(3)] for h in embedded]
    for row, slow in zip(model.instance_probabilities(features, xy).tolist(), expected, strict=True):
        assert row == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_patches_does_not_matter(name: str) -> None:
    model, (features, xy) = build(name, subtyping=True), bag(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    before, after = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.attention, before.attention[..., order], rtol=0, atol=1e-12)
    extras = [model.training_output(*one, 1).extra for one in ((features, xy), (features[order], xy[order]))]
    torch.testing.assert_close(extras[0], extras[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    model, (features, xy) = build(name), bag(5)
    assert torch.autograd.gradcheck(lambda f: model(f, xy).logits, features.requires_grad_())
    assert torch.autograd.gradcheck(lambda f: model.training_output(f, xy, 1).extra, features)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_is_the_published_small_model(name: str) -> None:
    branches = 1 if name == "clam_sb" else 2
    expected = {"attention_net.0.weight": (512, 1024), "attention_net.0.bias": (512,)}
    for part in ("attention_a.0", "attention_b.0"):
        expected |= {f"attention_net.3.{part}.weight": (256, 512), f"attention_net.3.{part}.bias": (256,)}
    expected |= {"attention_net.3.attention_c.weight": (branches, 256), "attention_net.3.attention_c.bias": (branches,)}
    if name == "clam_sb":
        expected |= {"classifiers.weight": (2, 512), "classifiers.bias": (2,)}
    for c in range(2):
        expected |= {f"instance_classifiers.{c}.weight": (2, 512), f"instance_classifiers.{c}.bias": (2,)}
        if name == "clam_mb":
            expected |= {f"classifiers.{c}.weight": (1, 512), f"classifiers.{c}.bias": (1,)}
    assert {key: tuple(value.shape) for key, value in models.build(name, 1024, 2).state_dict().items()} == expected
    assert models.entry(name).options == {
        "gated": True,
        "hidden": 512,
        "attention_dim": 256,
        "dropout": 0.25,
        "k_sample": 8,
        "bag_weight": 0.7,
        "inst_loss": "svm",
        "subtyping": False,
    }


def test_plain_attention_has_the_published_names() -> None:
    names = {name for name, _ in build("clam_sb", gated=False).attention_net.named_parameters()}
    assert names == {f"{layer}.{part}" for layer in ("0", "3.module.0", "3.module.3") for part in ("weight", "bias")}


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name: str) -> None:
    model, (features, xy) = build(name), bag(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    assert not torch.equal(model(features, xy).logits, model(features, xy).logits)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"k_sample": 0}, "model option k_sample is 0; it must be a whole number of at least 1"),
        ({"bag_weight": 0}, "model option bag_weight is 0; it must be above 0 and at most 1"),
        ({"bag_weight": True}, "model option bag_weight is True; it must be above 0 and at most 1"),
        ({"inst_loss": "hinge"}, "model option inst_loss is 'hinge'; it must be one of: svm, ce"),
        ({"subtyping": 1}, "model option subtyping is 1; it must be true or false"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    for name in NAMES:
        with pytest.raises(ConfigError) as refusal:
            models.build(name, DIM, 2, **options)
        assert str(refusal.value) == line, name
