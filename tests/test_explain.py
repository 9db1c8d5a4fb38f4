"""Explanations of the slide model: each method against its definition, and on every registered model that it fits."""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from explaining import LargestTensor, scores_of
from rich.console import Console
from torch import Tensor, nn

from wsi_pipeline.aggregate import Additive, MILOutput, models
from wsi_pipeline.aggregate.checkpoint import Task
from wsi_pipeline.cli.tables import plugin_table
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import Explainer, explainers
from wsi_pipeline.explain.single_patch import can_be_batched, single_patch_logits

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
FITS = {  # method -> the models that it explains
    "attention": "abmil additive clam_mb clam_sb dsmil dtfd gtn max smile transmil",
    "contribution": "abmil additive clam_mb clam_sb dsmil dtfd max mean smile",
    "deeplift": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "generic_attribution": "transmil",
    "gradcam_attention": "transmil",
    "gradcam_features": "abmil additive clam_mb clam_sb dtfd max mean smile transmil",
    "gradient_x_input": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "graphcam": "gtn",
    "guided_backprop": "abmil clam_mb clam_sb dsmil max mean smile transmil",
    "head_wise": "transmil",
    "instance": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "instance_head": "clam_mb clam_sb dsmil dtfd",
    "integrated_gradients": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "kernel_shap": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "leave_one_out": "abmil clam_mb clam_sb mean",
    "lime": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "lrp": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "partial_lrp": "transmil",
    "rollout": "transmil",
    "saliency": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "squared_gradient": "abmil additive clam_mb clam_sb dsmil dtfd gtn max mean smile transmil",
    "token_wise": "transmil",
    "transformer_attribution": "transmil",
}
FITTING_PAIRS = [(method, model) for method, names in FITS.items() for model in names.split()]
TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression", "survival")


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


# --- the target of classification ----------------------------------------------------------------------------


def test_the_contrast_is_the_logit_less_the_mean_of_the_others() -> None:
    assert contrast(torch.tensor([1.0, 4.0]), 1).item() == 3.0
    assert contrast(torch.tensor([1.0, 4.0]), 0).item() == -3.0
    assert contrast(torch.tensor([1.0, 4.0, 7.0]), 2).item() == 4.5
    assert contrast(torch.tensor([[1.0, 4.0, 7.0], [0.0, 0.0, 2.0]]), 0).tolist() == [-4.5, -1.0]


def test_the_contrast_is_independent_of_a_constant_that_all_logits_share() -> None:
    logits = torch.tensor([0.5, -1.25, 3.0])
    assert torch.allclose(contrast(logits + 17, 1), contrast(logits, 1))


# --- every method on every model -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_which_method_fits_which_model_is_this_table(task: Task) -> None:
    """For regression and survival the same, without instance_head. Every other pair has a reason of one line."""
    built = {name: build(name, classes=3) for name in MODELS}
    found: dict[str, list[str]] = {method: [] for method in METHODS}
    for method, (name, model) in product(METHODS, built.items()):
        reason = method_of(method).fits(ExplainedModel(model, task))
        if reason is None:
            found[method].append(name)
        else:
            assert "needs" in reason, (method, name)
            assert "\n" not in reason, (method, name)
    expected = FITS if task in ("classification", "multilabel") else FITS | {"instance_head": ""}
    assert {method: " ".join(names) for method, names in found.items()} == expected


@pytest.mark.parametrize(("method", "model_name"), FITTING_PAIRS)
def test_a_method_gives_one_finite_score_per_patch(method: str, model_name: str) -> None:
    explainer, model = method_of(method), build(model_name, classes=3).float()
    for patches in (1, 2, 17, 1000):
        features, xy = bag(patches)
        scores = scores_of(explainer, model, features.float(), xy.float(), 1)
        assert scores.shape == (patches,)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()


def test_every_method_states_its_facts_once_as_attributes() -> None:
    units = ("attention", "attribution", "probability", "prediction")
    for entry in explainers.entries():
        explainer = explainers.build(entry.name)
        assert explainer.unit in units, entry.name
        assert isinstance(explainer.signed, bool), entry.name
        assert isinstance(explainer.class_specific, bool), entry.name
        assert set(entry.info) == {"paper"}, entry.name
        assert entry.summary, entry.name


def test_the_list_of_explainers_shows_the_facts() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plugin_table("explainers"))
    shown = console.export_text()
    for fact in ("unit: attribution", "unit: prediction", "signed: True", "class_specific: False", "paper: Ilse"):
        assert fact in shown


@pytest.mark.parametrize("method", METHODS)
def test_modes_gradients_and_weights_of_the_model_are_restored(method: str) -> None:
    explainer = method_of(method)
    name = next(name for name in ("abmil", *MODELS) if name in FITS[method].split())
    model = build(name).train()
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    dropout.eval()  # differs from the rest of the model
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    features, xy = bag(20)
    explainer.fits(ExplainedModel(model))
    first = scores_of(explainer, model, features, xy, 1)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not features.requires_grad
    assert features.grad is None
    # in training mode, the other dropout layers would drop half of their inputs
    np.testing.assert_array_equal(scores_of(explainer, model.eval(), features, xy, 1), first)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_stores_a_value_for_each_pair_of_patches(method: str) -> None:
    explainer, (features, xy) = method_of(method), bag(1500)
    for model_name in FITS[method].split():
        model = build(model_name)
        with LargestTensor() as largest:
            scores_of(explainer, model, features, xy, 1)
        assert 1500 <= largest.values < 1500**2 / 4, model_name


# --- each method against its definition ----------------------------------------------------------------------


@pytest.mark.parametrize("options", TRANSMILS)
def test_attention_of_transmil_is_the_class_tokens_row_summing_to_one(options: dict[str, Any]) -> None:
    model, (features, xy) = build("transmil", **options), bag(17)
    scores = scores_of(explainers.build("attention"), model, features, xy, 1)
    assert scores.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scores, model(features, xy).attention.detach(), atol=1e-7)


def test_attention_is_the_requested_classs_row_where_each_class_has_its_own() -> None:
    model, (features, xy) = build("max", classes=3), bag(40)
    winners = model(features, xy).attention.argmax(1).tolist()
    assert len(set(winners)) > 1
    for target, winner in enumerate(winners):
        scores = scores_of(explainers.build("attention"), model, features, xy, target)
        assert scores.tolist() == [float(k == winner) for k in range(40)]


def test_attention_does_not_fit_a_model_without_attention() -> None:
    explainer, model = explainers.build("attention"), build("mean")
    assert "gives no attention" in (explainer.fits(ExplainedModel(model)) or "")
    with pytest.raises(ConfigError, match="gives no attention"):
        scores_of(explainer, model, *bag(3), 1)


@pytest.mark.parametrize("model_name", FITS["contribution"].split())
def test_contributions_and_bias_add_up_to_the_models_contrast(model_name: str) -> None:
    for classes in (2, 3):
        model, (features, xy) = build(model_name, classes), bag(200)
        assert isinstance(model, Additive)
        for target in range(classes):
            scores = scores_of(explainers.build("contribution"), model, features, xy, target)
            t = contrast(model(features, xy).logits, target).item()
            assert scores.astype(float).sum() + contrast(model.bias(), target).item() == pytest.approx(t, abs=1e-6)


def test_contribution_does_not_fit_transmil() -> None:
    assert "evidence" in (explainers.build("contribution").fits(ExplainedModel(build("transmil"))) or "")


@pytest.mark.parametrize("model_name", MODELS)
def test_instance_is_the_probability_of_the_bag_of_one(model_name: str) -> None:
    model = build(model_name, classes=3)
    for patches in (1, 2, 70):
        features, xy = bag(patches)
        scores = scores_of(explainers.build("instance"), model, features, xy, 2)
        for k in range(patches):
            expected = model(features[k : k + 1], xy[k : k + 1]).logits.softmax(0)[2].item()
            assert scores[k] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", TRANSMILS)
def test_transmils_closed_form_for_one_patch_is_its_forward_pass(options: dict[str, Any]) -> None:
    features, xy = bag(9)
    for landmarks in (1, 2, 3, 16):
        model = build("transmil", landmarks=landmarks, seed=3, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)  # away from the near-uniform attention of initial weights
            expected = torch.stack([model(features[k : k + 1], xy[k : k + 1]).logits for k in range(9)])
            torch.testing.assert_close(single_patch_logits(model, features, xy), expected, rtol=1e-9, atol=1e-9)
        assert expected.std(0).min() > 0.01


class Distinct(nn.Module):
    """A model whose shapes depend on the data, so that its bags cannot be batched."""

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        values = features.round().unique()
        return MILOutput(torch.stack([values.sum(), values.sum() * 0 + len(values)]), None)


def test_instance_calls_a_model_that_cannot_be_batched_patch_by_patch() -> None:
    features, xy = bag(6)
    assert not can_be_batched(Distinct(), features[:2], xy[:2])
    logits = single_patch_logits(Distinct(), features, xy)
    expected = [[sum({*row}), float(len({*row}))] for row in features.round().add(0.0).tolist()]
    np.testing.assert_allclose(logits, expected)


@pytest.mark.parametrize("model_name", MODELS)
def test_gradient_times_input_is_the_targets_change_as_a_patch_is_scaled(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(12)
    scores = scores_of(explainers.build("gradient_x_input"), model, features, xy, 0)
    step = 1e-6

    def t(k: int, factor: float) -> float:
        scaled = features.clone()
        scaled[k] *= factor
        with torch.no_grad():
            return contrast(model(scaled, xy).logits, 0).item()

    slopes = [(t(k, 1 + step) - t(k, 1 - step)) / (2 * step) for k in range(12)]
    np.testing.assert_allclose(scores, slopes, rtol=1e-4, atol=1e-6)
    assert max(map(abs, slopes)) > 1e-3
