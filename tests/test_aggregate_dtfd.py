"""DTFD-MIL against its definition, patch by patch, and the sums that its explanations are built on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_pipeline.aggregate import Additive, MILOutput, OwnTraining, models
from wsi_pipeline.aggregate.dtfd import DTFD
from wsi_pipeline.errors import ConfigError

DIM, HIDDEN = 7, 10
FORMS = ["afs", "maxs", "maxmins"]
SIZES = [1, 2, 3, 4, 17, 60]


def build(distill: str = "afs", classes: int = 2, **options: Any) -> DTFD:
    torch.manual_seed(0)
    model = models.build("dtfd", DIM, classes, distill=distill, **({"hidden": HIDDEN, "attention_dim": 6} | options))
    assert isinstance(model, DTFD)
    with torch.no_grad():  # sharper attention than the initial weights give
        for attention in (model.attention, model.att_classifier.attention):
            attention.attention_weights.weight.mul_(5)
    return model.double().eval()


def bag(patches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Features, and positions row by row on a square."""
    generator = torch.Generator().manual_seed(seed)
    side = math.ceil(patches**0.5)
    xy = torch.stack([torch.arange(patches) % side, torch.arange(patches) // side], dim=1).double()
    return torch.randn(patches, DIM, generator=generator, dtype=torch.float64), xy


# --- the definition --------------------------------------------------------------------------------------------


def slow_scores(p: Mapping[str, Tensor], tier: str, rows: list[Tensor]) -> list[float]:
    """softmax of w · (tanh(V h) * sigmoid(U h)) over ``rows``."""
    raw = []
    for h in rows:
        v = p[f"{tier}attention_V.0.weight"] @ h + p[f"{tier}attention_V.0.bias"]
        u = p[f"{tier}attention_U.0.weight"] @ h + p[f"{tier}attention_U.0.bias"]
        raw.append(float(p[f"{tier}attention_weights.weight"][0] @ (v.tanh() * u.sigmoid())))
    total = sum(math.exp(score) for score in raw)
    return [math.exp(score) / total for score in raw]


def slow_probability(p: Mapping[str, Tensor], h: Tensor, attention: float, size: int) -> float:
    """The last class's instance probability; with one output, its instance logit."""
    logits = [float(size * attention * (w @ h)) for w in p["classifier.fc.weight"]]
    if len(logits) == 1:
        return logits[0]
    return math.exp(logits[-1]) / sum(math.exp(logit) for logit in logits)


@torch.no_grad()
def slow_dtfd(model: DTFD, features: Tensor) -> MILOutput:
    """For patches in reading order."""
    p = dict(model.named_parameters())
    embedded = [(p["dim_reduction.fc1.weight"] @ x).clamp(min=0) for x in features]
    count, bags = len(embedded), model.pseudo_bags
    distilled: list[tuple[Tensor, dict[int, float]]] = []  # a feature, and the weights of the patches it is made of
    for first in range(min(bags, count)):
        members = list(range(first, count, bags))
        weights = slow_scores(p, "attention.", [embedded[k] for k in members])
        likely = [slow_probability(p, embedded[k], a, len(members)) for k, a in zip(members, weights, strict=True)]
        most, least = members[likely.index(max(likely))], members[likely.index(min(likely))]
        if model.distill == "afs":
            mean = torch.stack([a * embedded[k] for k, a in zip(members, weights, strict=True)]).sum(0)
            distilled.append((mean, dict(zip(members, weights, strict=True))))
        else:
            distilled.append((embedded[most], {most: 1.0}))
        if model.distill == "maxmins":
            distilled.append((embedded[least], {least: 1.0}))
    second = slow_scores(p, "att_classifier.attention.", [row for row, _ in distilled])
    effective = [0.0] * count
    pooled = torch.zeros(HIDDEN, dtype=torch.float64)
    for weight, (row, sources) in zip(second, distilled, strict=True):
        pooled += weight * row
        for k, share in sources.items():
            effective[k] += weight * share
    logits = p["att_classifier.classifier.fc.weight"] @ pooled + p["att_classifier.classifier.fc.bias"]
    return MILOutput(logits, torch.tensor(effective, dtype=torch.float64))


# --- claims ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distill", FORMS)
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_logits_and_attention_equal_the_written_out_definition(distill: str, classes: int) -> None:
    model = build(distill, classes)
    for patches in SIZES:
        features, xy = bag(patches)
        torch.testing.assert_close(model(features, xy), slow_dtfd(model, features), rtol=0, atol=1e-9)


@pytest.mark.parametrize("distill", FORMS)
def test_logits_are_the_sum_of_bias_and_evidence(distill: str) -> None:
    model = build(distill, 3)
    assert isinstance(model, Additive)
    for patches in SIZES:
        features, xy = bag(patches)
        evidence, out = model.evidence(features, xy), model(features, xy)
        assert evidence.shape == (patches, 3)
        torch.testing.assert_close(model.bias() + evidence.sum(0), out.logits, rtol=0, atol=1e-12)
        assert out.attention.sum().item() == pytest.approx(1, abs=1e-12)
        attended = {"afs": patches, "maxs": min(4, patches), "maxmins": min(8, patches)}[distill]
        assert int((out.attention > 0).sum()) <= attended
        assert distill != "maxs" or int((out.attention > 0).sum()) == attended


@pytest.mark.parametrize("distill", FORMS)
def test_the_mean_of_a_pseudo_bags_instance_logits_plus_bias_is_its_logits(distill: str) -> None:
    model = build(distill, 3)
    for patches in SIZES:
        features, xy = bag(patches)
        logits, of_bags = model.instance_logits(features, xy), model.pseudo_bag_logits(features, xy)
        assert logits.shape == (patches, 3)
        for members, expected in zip(model.split(xy), of_bags, strict=True):
            torch.testing.assert_close(logits[members].mean(0) + model.classifier.fc.bias, expected, rtol=0, atol=1e-12)


def test_with_a_single_pseudo_bag_the_mean_is_the_first_tiers_output_for_the_slide() -> None:
    model, (features, xy) = build(pseudo_bags=1), bag(17)
    mean = model.instance_logits(features, xy).mean(0) + model.classifier.fc.bias
    torch.testing.assert_close(mean, model.pseudo_bag_logits(features, xy)[0], rtol=0, atol=1e-12)


def test_patches_are_dealt_row_by_row() -> None:
    xy = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # reading order: 1, 4, 2, 3, 0
    assert build(pseudo_bags=2).split(xy).int().tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("distill", FORMS)
def test_the_order_of_the_list_changes_nothing(distill: str) -> None:
    model, (features, xy) = build(distill), bag(57)
    order = torch.randperm(57, generator=torch.Generator().manual_seed(3))
    before, shuffled = model(features, xy), model(features[order], xy[order])
    torch.testing.assert_close(shuffled.logits, before.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(shuffled.attention, before.attention[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        model.instance_logits(features[order], xy[order]),
        model.instance_logits(features, xy)[order],
        rtol=0,
        atol=1e-12,
    )


def test_training_splits_at_random_by_the_seed() -> None:
    model, (_, xy) = build(pseudo_bags=5).train(), bag(23)
    splits = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        splits.append(model.split(xy))
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])
    assert splits[2].sum(0).tolist() == [1] * 23
    assert splits[2].sum(1).tolist() == [5, 5, 5, 4, 4]
    assert torch.equal(model.eval().split(xy), model.split(xy))


@pytest.mark.parametrize("distill", FORMS)
def test_bags_of_all_sizes_have_the_same_number_of_training_streams(distill: str) -> None:
    model = build(distill, pseudo_bags=5)
    assert isinstance(model, OwnTraining)
    for patches in (1, 2, 3, 5, 40):
        features, xy = bag(patches)
        out = model.training_output(features, xy, 1)
        assert [weight for weight, _ in out.streams] == [0.2] * 5 + [1.0]
        assert out.extra.item() == 0
        of_bags = model.pseudo_bag_logits(features, xy)
        for m, (_, logits) in enumerate(out.streams[:5]):
            torch.testing.assert_close(logits, of_bags[m % min(5, patches)])
        torch.testing.assert_close(out.streams[5][1], model(features, xy).logits)


@pytest.mark.parametrize("distill", FORMS)
def test_each_tier_learns_from_its_own_loss(distill: str) -> None:
    model, (features, xy) = build(distill), bag(20)
    second = {name for name, _ in model.named_parameters() if name.startswith("att_classifier.")}
    first = {name for name, _ in model.named_parameters()} - second
    for streams, learning in ((slice(0, 4), first), (slice(4, 5), second)):
        model.zero_grad()
        torch.stack(
            [logits for _, logits in model.training_output(features, xy, 0).streams[streams]]
        ).square().sum().backward()
        assert {name for name, value in model.named_parameters() if value.grad is not None} == learning


@pytest.mark.parametrize("distill", FORMS)
def test_a_call_keeps_the_whole_graph_for_explanations(distill: str) -> None:
    model, (features, xy) = build(distill, hidden=4, attention_dim=3), bag(9)

    def logits(features: Tensor) -> Tensor:
        found: Tensor = model(features, xy).logits
        return found

    assert torch.autograd.gradcheck(logits, features.requires_grad_())


def test_the_parameters_are_the_four_dictionaries_of_a_published_checkpoint() -> None:
    def gated(hidden: int) -> dict[str, tuple[int, ...]]:
        return {
            "attention_V.0.weight": (128, hidden),
            "attention_V.0.bias": (128,),
            "attention_U.0.weight": (128, hidden),
            "attention_U.0.bias": (128,),
            "attention_weights.weight": (1, 128),
            "attention_weights.bias": (1,),
        }

    classifier = {"fc.weight": (2, 512), "fc.bias": (2,)}
    published: dict[str, dict[str, tuple[int, ...]]] = {
        "classifier": classifier,
        "dim_reduction": {"fc1.weight": (512, 1024)},
        "attention": gated(512),
        "att_classifier": {f"attention.{name}": shape for name, shape in gated(512).items()}
        | {f"classifier.{name}": shape for name, shape in classifier.items()},
    }
    expected = {f"{part}.{name}": shape for part, names in published.items() for name, shape in names.items()}
    state = models.build("dtfd", 1024, 2).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert models.entry("dtfd").options == {
        "distill": "afs",
        "pseudo_bags": 4,
        "hidden": 512,
        "attention_dim": 128,
        "dropout": 0.0,
    }


def test_dropout_acts_in_training_only() -> None:
    model, (features, xy) = build(dropout=0.5, pseudo_bags=1), bag(30)
    assert torch.equal(model(features, xy).logits, model(features, xy).logits)
    model.train()
    assert not torch.allclose(model(features, xy).logits, model(features, xy).logits)


@pytest.mark.parametrize("distill", FORMS)
def test_bf16_autocast_stays_near_full_precision(distill: str) -> None:
    model, (features, xy) = build(distill, pseudo_bags=1).float(), bag(40)
    full: MILOutput = model(features.float(), xy.float())
    with torch.autocast("cpu", torch.bfloat16):
        half: MILOutput = model(features.float(), xy.float())
        assert len(model.training_output(features.float(), xy.float(), 0).streams) == 2
    assert half.attention is not None
    assert half.attention.sum().item() == pytest.approx(1, abs=1e-2)
    torch.testing.assert_close(half.logits.float(), full.logits, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": "AFS"}, "model option distill is 'AFS'; it must be one of: afs, maxs, maxmins"),
        ({"pseudo_bags": 0}, "model option pseudo_bags is 0; it must be a whole number of at least 1"),
        ({"dropout": 1}, "model option dropout is 1; it must be at least 0 and less than 1"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        models.build("dtfd", DIM, 2, **options)
    assert str(refusal.value) == message
