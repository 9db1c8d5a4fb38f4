"""Explanations of the slide model: each method against its definition, all of them on every registered model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.aggregate import Additive, MILOutput, models
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import Explainer, explainers
from wsi_pipeline.explain.single_patch import batches, logits_alone

DIM = 8
SMALL = {"hidden": 16, "attention_dim": 4, "heads": 2, "landmarks": 4, "nodes": 8, "dropout": 0.5}
FAST = {"samples": 12, "steps": 3}
METHODS = explainers.names()
MODELS = models.names()
TRANSMILS: list[dict[str, Any]] = [
    {"attention": attention, "position": position}
    for attention in ("nystrom", "exact")
    for position in ("sequence", "grid")
]


def build(name: str, classes: int = 2, seed: int = 0, **options: Any) -> nn.Module:
    """A small model with random weights, in eval mode and double precision."""
    torch.manual_seed(seed)
    takes = models.entry(name).options
    known = {option: value for option, value in SMALL.items() if option in takes}
    return models.build(name, DIM, classes, **(known | options)).double().eval()


def method_of(name: str) -> Explainer:
    """The method, with few samples and steps where it takes them."""
    takes = explainers.entry(name).options
    return explainers.build(name, **{option: value for option, value in FAST.items() if option in takes})


def bag(patches: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, D) and positions (N, 2) of a bag of standard normals on a grid ten patches wide."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(patches)
    return (
        torch.randn(patches, DIM, generator=generator, dtype=torch.float64),
        torch.stack([index % 10, index // 10], 1).double(),
    )


# --- the number that is explained ----------------------------------------------------------------------------


def test_the_contrast_of_two_classes_is_their_difference_and_of_more_the_class_against_the_mean_of_the_rest() -> None:
    assert contrast(torch.tensor([1.0, 4.0]), 1).item() == 3.0
    assert contrast(torch.tensor([1.0, 4.0]), 0).item() == -3.0
    assert contrast(torch.tensor([1.0, 4.0, 7.0]), 2).item() == 4.5
    assert contrast(torch.tensor([[1.0, 4.0, 7.0], [0.0, 0.0, 2.0]]), 0).tolist() == [-4.5, -1.0]


def test_the_contrast_ignores_what_all_classes_share() -> None:
    logits = torch.tensor([0.5, -1.25, 3.0])
    assert torch.allclose(contrast(logits + 17, 1), contrast(logits, 1))


# --- every method on every model -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_one_finite_number_a_patch_on_every_model_it_fits(method: str, model_name: str) -> None:
    explainer, model = method_of(method), build(model_name, classes=3).float()
    reason = explainer.fits(ExplainedModel(model))
    if reason is not None:
        assert "needs" in reason
        assert "\n" not in reason
        return
    for patches in (1, 2, 17, 1000):
        features, xy = bag(patches)
        scores = scores_of(explainer, model, features.float(), xy.float(), 1)
        assert scores.shape == (patches,)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_states_its_facts(method: str) -> None:
    explainer, entry = explainers.build(method), explainers.entry(method)
    assert explainer.unit in ("attention", "attribution", "probability", "prediction")
    assert isinstance(explainer.signed, bool)
    assert isinstance(explainer.class_specific, bool)
    assert entry.info["paper"]
    assert explainers.entry(method).summary


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_given_back_as_it_was(method: str) -> None:
    explainer = method_of(method)
    name = next(name for name in ("abmil", *MODELS) if explainer.fits(ExplainedModel(build(name))) is None)
    model = build(name).train()
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    dropout.eval()  # a part that someone has set on its own
    next(model.parameters()).requires_grad_(False)
    training = [module.training for module in model.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    features, xy = bag(20)
    explainer.fits(ExplainedModel(model))
    first = scores_of(explainer, model, features, xy, 1)
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not features.requires_grad
    assert features.grad is None
    # half of what other dropout layers are given would be dropped in training mode
    np.testing.assert_array_equal(scores_of(explainer, model.eval(), features, xy, 1), first)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that one result of an operator has held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_name", MODELS)
def test_no_method_makes_a_number_for_each_pair_of_patches(method: str, model_name: str) -> None:
    explainer, model = method_of(method), build(model_name)
    if explainer.fits(ExplainedModel(model)) is not None:
        return
    features, xy = bag(1500)
    with Largest() as largest:
        scores_of(explainer, model, features, xy, 1)
    assert 1500 <= largest.numbers < 1500**2 / 4


# --- each method against its definition ----------------------------------------------------------------------


@pytest.mark.parametrize("options", TRANSMILS)
def test_attention_of_transmil_is_the_class_tokens_row_summing_to_one(options: dict[str, Any]) -> None:
    model, (features, xy) = build("transmil", **options), bag(17)
    scores = scores_of(explainers.build("attention"), model, features, xy, 1)
    assert scores.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scores, model(features, xy).attention.detach(), atol=1e-7)


def test_attention_is_the_targets_row_where_each_class_has_its_own() -> None:
    model, (features, xy) = build("max", classes=3), bag(40)
    winners = model(features, xy).attention.argmax(1).tolist()
    assert len(set(winners)) > 1
    for target, winner in enumerate(winners):
        scores = scores_of(explainers.build("attention"), model, features, xy, target)
        assert scores.tolist() == [float(k == winner) for k in range(40)]


def test_attention_does_not_fit_a_model_that_gives_none() -> None:
    explainer, model = explainers.build("attention"), build("mean")
    assert "gives no attention" in (explainer.fits(ExplainedModel(model)) or "")
    with pytest.raises(ConfigError, match="gives no attention"):
        scores_of(explainer, model, *bag(3), 1)


@pytest.mark.parametrize("model_name", [name for name in MODELS if isinstance(build(name), Additive)])
@pytest.mark.parametrize("classes", [2, 3])
def test_contributions_and_bias_add_up_to_the_models_contrast(model_name: str, classes: int) -> None:
    model, (features, xy) = build(model_name, classes), bag(200)
    assert isinstance(model, Additive)
    for target in range(classes):
        scores = scores_of(explainers.build("contribution"), model, features, xy, target)
        answer = contrast(model(features, xy).logits, target).item()
        assert scores.astype(float).sum() + contrast(model.bias(), target).item() == pytest.approx(answer, abs=1e-6)


def test_contribution_does_not_fit_transmil() -> None:
    assert "evidence" in (explainers.build("contribution").fits(ExplainedModel(build("transmil"))) or "")


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("patches", [1, 2, 70])
def test_instance_is_the_probability_of_the_bag_of_one(model_name: str, patches: int) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(patches)
    scores = scores_of(explainers.build("instance"), model, features, xy, 2)
    for k in range(patches):
        expected = model(features[k : k + 1], xy[k : k + 1]).logits.softmax(0)[2].item()
        assert scores[k] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", TRANSMILS)
@pytest.mark.parametrize("landmarks", [1, 2, 3, 16])
def test_transmils_closed_form_for_one_patch_is_its_forward_pass(options: dict[str, Any], landmarks: int) -> None:
    model, (features, xy) = build("transmil", landmarks=landmarks, seed=3, **options), bag(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # away from the near-uniform attention of fresh weights
        expected = torch.stack([model(features[k : k + 1], xy[k : k + 1]).logits for k in range(9)])
        torch.testing.assert_close(logits_alone(model, features, xy), expected, rtol=1e-9, atol=1e-9)
    assert expected.std(0).min() > 0.01


class Distinct(nn.Module):
    """A model whose shapes depend on the data, so that its bags cannot be batched."""

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        values = features.round().unique()
        return MILOutput(torch.stack([values.sum(), values.sum() * 0 + len(values)]), None)


def test_instance_calls_a_model_that_cannot_be_batched_patch_by_patch() -> None:
    features, xy = bag(6)
    assert not batches(Distinct(), features[:2], xy[:2])
    logits = logits_alone(Distinct(), features, xy)
    expected = [[sum({*row}), float(len({*row}))] for row in features.round().add(0.0).tolist()]
    np.testing.assert_allclose(logits, expected)


@pytest.mark.parametrize("model_name", MODELS)
def test_gradient_times_input_is_the_answers_change_as_a_patch_is_scaled(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(12)
    scores = scores_of(explainers.build("gradient_x_input"), model, features, xy, 0)
    step = 1e-6

    def answer(k: int, factor: float) -> float:
        scaled = features.clone()
        scaled[k] *= factor
        with torch.no_grad():
            return contrast(model(scaled, xy).logits, 0).item()

    slopes = [(answer(k, 1 + step) - answer(k, 1 - step)) / (2 * step) for k in range(12)]
    np.testing.assert_allclose(scores, slopes, rtol=1e-4, atol=1e-6)
    assert max(map(abs, slopes)) > 1e-3
