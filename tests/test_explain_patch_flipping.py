"""Patch flipping and infidelity against their definitions as loops, sanity checks, and the selection of a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from torch import Tensor, nn

from wsi_pipeline.aggregate import MILOutput, WeightedMean, models
from wsi_pipeline.aggregate.abmil import AttentionMIL
from wsi_pipeline.aggregate.checkpoint import ModelCard, Task
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.measures.cost import measured
from wsi_pipeline.explain.measures.infidelity import infidelity, removals, squares
from wsi_pipeline.explain.measures.patch_flipping import (
    curve,
    descending,
    flipping,
    mean_scores,
    perturbable,
    remaining,
)
from wsi_pipeline.explain.measures.sanity import likeness, max_sensitivity, redrawn
from wsi_pipeline.explain.method_selection import Case, choose, likeliest, validation_scores
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.weighted_mean import is_weighted_mean, weighted_mean

DIM = 6
SMALL = {"hidden": 8, "attention_dim": 4, "heads": 2, "landmarks": 4, "nodes": 8, "dropout": 0.5}


def build(name: str, classes: int = 3, seed: int = 0, **options: Any) -> nn.Module:
    """A small model with weights far from uniform attention, in eval mode and double precision."""
    torch.manual_seed(seed)
    known = {option: value for option, value in SMALL.items() if option in models.entry(name).options}
    model = models.build(name, DIM, classes, **(known | options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def bag(patches: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(patches)
    features = torch.randn(patches, DIM, generator=generator, dtype=torch.float64)
    return features, torch.stack([index % 10, index // 10], 1).double()


def slow_curve(
    members: list[nn.Module], features: Tensor, xy: Tensor, scores: np.ndarray, points: int, stand_in: Tensor | None
) -> tuple[list[float], list[float]]:
    """Probability and contrast of class 1 by definition: patches are removed one after the other, the highest score
    first, and at each point the models are run on the rest."""
    patches = len(features)
    order = sorted(range(patches), key=lambda k: (-scores[k], k))
    probability, logit = [], []
    for i in range(points):
        removed = math.floor(i * patches / (points - 1) + 0.5)
        if stand_in is None:
            kept = sorted(order[min(removed, patches - 1) :])
            rest, places = features[kept], xy[kept]
        else:
            rest, places = features.clone(), xy
            for k in order[:removed]:
                rest[k] = stand_in
        with torch.no_grad():
            logits = [model(rest, places).logits for model in members]
        probability.append(float(np.mean([y.softmax(0)[1].item() for y in logits])))
        logit.append(float(np.mean([contrast(y, 1).item() for y in logits])))
    return probability, logit


def explained(members: Sequence[nn.Module], task: Task = "classification") -> list[ExplainedModel]:
    return [ExplainedModel(member, task) for member in members]


# --- curves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removal", ["drop", "replace"])
@pytest.mark.parametrize("name", models.names())
def test_both_curves_are_the_definition(name: str, removal: str) -> None:
    members = [build(name, seed=s) for s in (0, 1)]
    for patches in (1, 2, 17, 130):
        features, xy = bag(patches)
        scores = np.random.default_rng(patches).integers(-3, 4, patches) / 3.0  # with ties
        stand_in = features.mean(0) if removal == "replace" else None
        found = flipping(perturbable(explained(members), features, xy, stand_in), scores, 1, points=12)
        for one, sign in ((found.most, 1), (found.least, -1)):
            probability, logit = slow_curve(members, features, xy, sign * scores, 12, stand_in)
            np.testing.assert_allclose(one.outcome, probability, rtol=0, atol=1e-8, err_msg=f"{patches} patches")
            np.testing.assert_allclose(one.target, logit, rtol=1e-8, atol=1e-8, err_msg=f"{patches} patches")
        assert patches == 1 or np.ptp(found.most.target) > 1e-3
        assert found.aupc == pytest.approx(np.mean(found.most.outcome))
        assert found.gain == pytest.approx(np.mean(found.insertion) - found.aupc)


def test_only_weighted_means_have_the_closed_form() -> None:
    found = [name for name in models.names() if weighted_mean(build(name), *bag(3)) is not None]
    assert found == ["abmil", "clam_mb", "clam_sb", "mean"]


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "clam_mb"])
def test_the_closed_form_keeps_its_digits_when_one_patch_outweighs_all_others(name: str) -> None:
    model, (features, xy) = build(name), bag(50)
    last = "score.weight" if name == "abmil" else "attention_net.3.attention_c.weight"
    with torch.no_grad():
        model.get_parameter(last).mul_(400)
    attention = model(features, xy).attention
    assert attention.min() < 1e-100  # far below the resolution of a sum of all weights
    scores = attention.reshape(-1, 50)[0].detach().numpy()
    found = curve(perturbable(explained([model]), features, xy), descending(scores), 1, points=51)
    np.testing.assert_allclose(found.outcome, slow_curve([model], features, xy, scores, 51, None)[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("gated", [True, False])
def test_the_closed_form_covers_plain_and_gated_attention(gated: bool) -> None:
    model, (features, xy) = build("abmil", gated=gated, hidden=None), bag(30)
    scores = np.arange(30.0)
    found = curve(perturbable(explained([model]), features, xy), descending(scores), 1, points=31)
    np.testing.assert_allclose(found.outcome, slow_curve([model], features, xy, scores, 31, None)[0], atol=1e-8)


def test_insertion_is_adding_the_most_relevant_first() -> None:
    model, (features, xy), scores = build("abmil"), bag(20), np.random.default_rng(1).random(20)
    found = flipping(perturbable(explained([model]), features, xy, features.mean(0)), scores, 1, points=21)
    order = np.argsort(-scores)
    for count in range(21):
        inserted = features.mean(0).repeat(20, 1)
        inserted[order[:count]] = features[order[:count]]
        expected = model(inserted, xy).logits.softmax(0)[1].item()
        assert found.insertion[count] == pytest.approx(expected, abs=1e-8)


def test_the_gain_of_a_constant_map_is_zero() -> None:
    model, (features, xy) = build("transmil"), bag(30)
    for stand_in in (None, features.mean(0)):
        perturbation = perturbable(explained([model]), features, xy, stand_in)
        assert flipping(perturbation, np.ones(30), 1, points=9).gain == 0.0


def test_fractions_are_equal_steps_and_the_last_bag_is_the_smallest_allowed() -> None:
    assert remaining(10, 11, 1).tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1]
    assert remaining(10, 11, 0).tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert remaining(3, 5, 1).tolist() == [3, 2, 1, 1, 1]  # 0.75, 1.5 and 2.25 rounded, half up
    assert len(remaining(12345, 101, 1)) == 101


def test_equal_scores_are_removed_in_the_order_of_the_grid() -> None:
    assert descending(np.array([1.0, 2.0, 2.0, 0.0, 2.0])).tolist() == [1, 2, 4, 0, 3]


class OwnAttentionMIL(nn.Module):
    """A user's own attention-based MIL, not a subclass of the package's models."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.classify = nn.Linear(DIM, 1), nn.Linear(DIM, 2)
        self.calls = 0

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        self.calls += 1
        attention = self.score(features).squeeze(1).softmax(0)  # (N,)
        return MILOutput(self.classify(attention @ features), attention)

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean:
        return WeightedMean(self.score(features), features @ self.classify.weight.T, self.classify.bias)


class Sharpened(AttentionMIL):
    """Inherits ``weighted_mean`` but weights its patches differently."""

    def weigh(self, scores: Tensor) -> Tensor:
        weights = scores.softmax(0).square()
        return weights / weights.sum() * (1 + scores[0].tanh())


def test_a_users_own_attention_model_uses_the_closed_form() -> None:
    torch.manual_seed(0)
    model, (features, xy) = OwnAttentionMIL().double().eval(), bag(60)
    scores = np.random.default_rng(0).random(60)
    found = curve(perturbable(explained([model]), features, xy), descending(scores), 1, points=31)
    assert model.calls == 1
    np.testing.assert_allclose(found.outcome, slow_curve([model], features, xy, scores, 31, None)[0], atol=1e-8)


def test_a_wrong_weighted_mean_is_detected_and_not_used() -> None:
    torch.manual_seed(0)
    model = Sharpened(DIM, 2, gated=False, hidden=8, attention_dim=4, dropout=0.0).double().eval()
    features, xy = bag(20)
    assert weighted_mean(model, features, xy) is None
    assert not is_weighted_mean(model)
    scores = np.random.default_rng(0).random(20)
    found = curve(perturbable(explained([model]), features, xy), descending(scores), 1, points=21)
    np.testing.assert_allclose(found.outcome, slow_curve([model], features, xy, scores, 21, None)[0], atol=1e-8)


def test_curves_of_a_model_without_probabilities_are_of_its_output() -> None:
    model, (features, xy) = build("abmil", classes=1), bag(8)
    found = curve(perturbable(explained([model], "survival"), features, xy), descending(np.arange(8.0)), 0, points=9)
    assert found.outcome[0] == pytest.approx(model(features, xy).logits.item())
    found = curve(perturbable(explained([model], "multilabel"), features, xy), descending(np.arange(8.0)), 0, points=9)
    assert found.outcome[0] == pytest.approx(model(features, xy).logits.sigmoid().item())


class Evidence(nn.Module):
    """Its logit counts the patches whose first feature is above 0; no closed form, and it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        self.calls += 1
        count = (features[:, 0] > 0).sum() * 1.0
        return MILOutput(torch.stack([torch.zeros_like(count), count - 2.5]), None)


def test_a_faithful_map_has_the_lowest_area_and_the_highest_gain() -> None:
    model, (features, xy) = Evidence(), bag(40)
    truth = (features[:, 0] > 0).double().numpy()
    areas, gains = {}, {}
    for name, scores in {"true": truth, "wrong": -truth, "random": np.random.default_rng(0).random(40)}.items():
        found = flipping(perturbable(explained([model]), features, xy), scores, 1, points=41)
        areas[name], gains[name] = found.aupc, found.gain
    assert areas["true"] < areas["random"] < areas["wrong"]
    assert gains["true"] > gains["random"] > gains["wrong"]
    assert gains["wrong"] == pytest.approx(-gains["true"], abs=0.02)


def test_a_small_bag_is_evaluated_once_per_size() -> None:
    model, (features, xy) = Evidence(), bag(5)
    curve(perturbable(explained([model]), features, xy), descending(np.arange(5.0)), 1, points=101)
    assert model.calls == 5


# --- infidelity ----------------------------------------------------------------------------------------------


def slow_infidelity(
    members: list[nn.Module], features: Tensor, xy: Tensor, scores: np.ndarray, mask: np.ndarray, target: int
) -> float:
    """Yeh et al.'s mean of squares at their factor beta, over that of a map of zeros; a negative beta becomes 0."""

    def t(features: Tensor) -> float:
        with torch.no_grad():
            return float(np.mean([contrast(model(features, xy).logits, target).item() for model in members]))

    sums, changes = [], []
    for row in mask:
        perturbed = features.clone()
        for k in np.flatnonzero(row):
            perturbed[k] = features.mean(0)
        sums.append(sum(scores[k] for k in np.flatnonzero(row)))
        changes.append(t(features) - t(perturbed))
    pairs = list(zip(sums, changes, strict=True))
    squared = sum(s * s for s in sums)
    beta = max(sum(s * c for s, c in pairs) / squared, 0.0) if squared else 0.0
    return float(sum((beta * s - c) ** 2 for s, c in pairs) / sum(c * c for c in changes))


@pytest.mark.parametrize("name", models.names())
def test_infidelity_is_the_definition(name: str) -> None:
    members, (features, xy) = [build(name, seed=s) for s in (0, 1)], bag(60)
    mask = squares(xy.numpy(), 12, np.random.default_rng(0))
    removed = removals(perturbable(explained(members), features, xy, features.mean(0)), mask, 1)
    for scores in (np.random.default_rng(1).standard_normal(60), np.random.default_rng(2).random(60)):
        found = [infidelity(removed, sign * scores) for sign in (1, -1)]
        expected = [slow_infidelity(members, features, xy, sign * scores, mask, 1) for sign in (1, -1)]
        np.testing.assert_allclose(found, expected, atol=1e-8)
        assert max(found) == 1.0  # one of the two has the opposite sign
        assert min(found) < 1 - 1e-6
        np.testing.assert_allclose(infidelity(removed, 50 * scores), found[0], atol=1e-12)


def test_infidelity_is_zero_for_contributions_to_a_sum_and_one_for_zeros() -> None:
    model, (features, xy) = build("mean"), bag(60)
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
            layer.bias.zero_()
    features -= features.mean(0)  # so that the mean patch contributes nothing
    mask = squares(xy.numpy(), 20, np.random.default_rng(0))
    removed = removals(perturbable(explained([model]), features, xy, features.mean(0)), mask, 1)
    scores = scores_of(explainers.build("contribution"), model, features, xy, 1)
    assert removed.change.abs().max() > 1e-2
    assert infidelity(removed, scores) == pytest.approx(0, abs=1e-6)
    assert infidelity(removed, np.zeros(60)) == 1.0
    assert infidelity(removed, -scores) == 1.0
    assert infidelity(removed, np.ones(60)) > 0.01


def test_a_removal_is_a_square_around_a_patch() -> None:
    _, xy = bag(100)  # ten by ten
    mask = squares(xy.numpy(), 100, np.random.default_rng(0))
    sizes = mask.sum(1)
    assert (sizes.min(), sizes.max()) == (1, 25)
    places = xy.tolist()
    for row, size in zip(mask.tolist(), sizes.tolist(), strict=True):
        around = (
            sorted(range(100), key=lambda k: (max(abs(places[k][0] - x), abs(places[k][1] - y)), k)) for x, y in places
        )
        assert any({k for k in range(100) if row[k]} == set(nearest[:size]) for nearest in around)
    np.testing.assert_array_equal(squares(xy.numpy(), 100, np.random.default_rng(0)), mask)


def test_infidelity_is_nan_where_no_removal_changes_the_target() -> None:
    model, (features, xy) = build("abmil"), bag(1)
    removed = removals(
        perturbable(explained([model]), features, xy, features.mean(0)),
        squares(xy.numpy(), 3, np.random.default_rng(0)),
        1,
    )
    assert math.isnan(infidelity(removed, np.ones(1)))


# --- selection of a method -----------------------------------------------------------------------------------


def test_the_method_with_the_lowest_aupc_is_selected_and_of_ties_the_first_by_name() -> None:
    assert choose({"b": 0.2, "a": 0.3}) == "b"
    assert choose({"b": 0.2, "c": 0.1, "a": 0.1}) == "a"
    assert choose({"b": 0.2, "a": math.nan}) == "b"
    with pytest.raises(ValueError, match="no method was measured"):
        choose({"a": math.nan})


def test_validation_scores_are_the_mean_aupc_of_the_predicted_class() -> None:
    members = [build("abmil", seed=s) for s in range(2)]
    cases = [Case(explained(members), *bag(20, seed=1)), Case(explained(members[:1]), *bag(30, seed=2))]
    methods = {name: explainers.build(name) for name in ("attention", "contribution")}
    found = validation_scores(cases, methods, points=11)
    for name, explainer in methods.items():
        areas = []
        for own, features, xy in cases:
            target = int(np.mean([m.module(features, xy).logits.softmax(0).tolist() for m in own], axis=0).argmax())
            assert likeliest(own, features, xy) == target
            scores = np.mean([explainer(m, features, xy, target).numpy() for m in own], axis=0)
            areas.append(flipping(perturbable(own, features, xy), scores, target, points=11).aupc)
            np.testing.assert_allclose(mean_scores(explainer, own, features, xy, target), scores, rtol=1e-6)
        assert found[name] == pytest.approx(np.mean(areas), abs=1e-6)
    assert math.isnan(validation_scores([], methods)["attention"])


# --- sanity and cost -----------------------------------------------------------------------------------------


def card(name: str) -> ModelCard:
    known = {option: value for option, value in SMALL.items() if option in models.entry(name).options}
    return ModelCard(name, known, ("a", "b", "c"), "lite0", {}, "digest", DIM, 0.5, 100, None, {})


def test_a_redrawn_model_has_the_same_design_and_weights_by_its_seed() -> None:
    for name in models.names():
        torch.manual_seed(5)
        first, again, other = (redrawn(card(name), "cpu", seed) for seed in (1, 1, 2))
        assert torch.initial_seed() == 5, name
        states = [model.state_dict() for model in (first, again, other, build(name))]
        assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[3].items()}, name
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items()), name
        assert any(not torch.equal(v, states[2][k]) for k, v in states[0].items()), name
        assert not first.training, name


def test_randomisation_detects_a_map_that_ignores_the_model() -> None:
    features, xy = bag(200)
    slide_only = features.norm(dim=1).numpy()
    assert likeness(slide_only, slide_only**2) == pytest.approx(1.0)
    explainer, model = explainers.build("contribution"), build("abmil")
    maps = [
        scores_of(explainer, m, features, xy, 1)
        for m in (model, *(redrawn(card("abmil"), "cpu", s).double() for s in range(20)))
    ]
    assert abs(np.mean([likeness(maps[0], other) for other in maps[1:]])) < 0.4


def test_max_sensitivity_of_a_linear_map_is_the_change_by_its_worst_sample() -> None:
    features = bag(12)[0]
    reach = 0.02 * float(features.numpy().std())
    generator = torch.Generator().manual_seed(3)
    worst, plain = 0.0, features[:, 0].numpy()
    for _ in range(7):
        noise = (torch.rand(12, DIM, generator=generator, dtype=torch.float64) * 2 - 1) * reach
        worst = max(worst, math.sqrt(sum(x**2 for x in noise[:, 0].tolist())) / math.sqrt(sum(x**2 for x in plain)))
    found = max_sensitivity(lambda x: x[:, 0].numpy(), features, torch.Generator().manual_seed(3), samples=7)
    assert found == pytest.approx(worst, rel=1e-6)
    assert max_sensitivity(lambda x: np.ones(12), features, generator) == 0.0
    assert math.isnan(max_sensitivity(lambda x: np.zeros(12), features, generator))


def test_cost_measures_memory_and_time_of_a_call() -> None:
    total, cost = measured(lambda: torch.ones(2**25).sum().item(), torch.device("cpu"))  # 128 MiB
    assert total == 2**25
    assert cost.peak_bytes > 100 * 2**20
    assert 0.001 < cost.seconds < 60


# --- planted evidence ----------------------------------------------------------------------------------------


def planted(generator: torch.Generator, patches: int = 60) -> tuple[Tensor, int]:
    """Features (60, 6), evidence for in the first and against in the second, and which of them is more frequent."""
    fewer = int(torch.randint(1, 5, (), generator=generator))
    more = fewer + int(torch.randint(1, 3, (), generator=generator))
    label = int(torch.randint(0, 2, (), generator=generator))
    counts = (more, fewer) if label else (fewer, more)
    features = torch.randn(patches, DIM, generator=generator)
    features[: counts[0], 0] += 4
    features[counts[0] : sum(counts), 1] += 4
    return features[torch.randperm(patches, generator=generator)], label


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = models.build("abmil", DIM, 2, hidden=32, attention_dim=16, dropout=0.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(250):
        loss = torch.zeros(())
        for _ in range(8):
            features, label = planted(generator)
            logits = model(features, torch.zeros(60, 2)).logits
            loss = loss + nn.functional.cross_entropy(logits[None], torch.tensor([label]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_on_planted_evidence_contribution_is_selected_over_attention_and_random_is_worst(trained: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    cases = [Case(explained([trained]), planted(generator)[0], torch.zeros(60, 2)) for _ in range(40)]
    methods = {name: explainers.build(name) for name in ("attention", "contribution", "instance")}
    aupc = validation_scores(cases, methods, points=101)
    random: list[float] = []
    for members, features, xy in cases:
        scores = np.random.default_rng(len(random)).random(60)
        random.append(flipping(perturbable(members, features, xy), scores, likeliest(members, features, xy)).aupc)
    assert choose(aupc) in ("contribution", "instance")
    assert aupc["contribution"] < 0.15 < aupc["attention"] < np.mean(random)
