"""Gradients, integrated gradients and Grad-CAM: against finite differences and their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from test_explain import FITS, MODELS, bag, build
from torch import Tensor, nn

from wsi_pipeline.aggregate import MILOutput
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.patch_embedding import embedded_leaf, embedding

CONTINUOUS = [name for name in MODELS if name != "dsmil"]  # it jumps where another patch becomes critical
GUIDED, EMBEDDING = FITS["guided_backprop"].split(), FITS["gradcam_features"].split()


def t(model: nn.Module, features: Tensor, xy: Tensor, target: int) -> float:
    """The target of classification."""
    with torch.no_grad():
        return contrast(model(features, xy).logits, target).item()


def attribute(method: str, model: nn.Module, features: Tensor, xy: Tensor, target: int, **options: Any) -> Attribution:
    explainer = explainers.build(method, **options)
    return explainer(ExplainedModel(model), features, xy, target)


@pytest.mark.parametrize("model_name", MODELS)
def test_saliency_and_squared_gradient_are_magnitudes_of_finite_differences(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(300)
    with torch.no_grad():
        weight = model(features, xy).attention
    attended = 0 if weight is None else int(weight.reshape(-1, 300)[-1].argmax())
    step, patches = 1e-6, [attended, 299]
    slopes = np.zeros((len(patches), features.shape[1]))
    for row, k in enumerate(patches):
        for d in range(features.shape[1]):
            ends = []
            for sign in (1, -1):
                moved = features.clone()
                moved[k, d] += sign * step
                ends.append(t(model, moved, xy, 1))
            slopes[row, d] = (ends[0] - ends[1]) / (2 * step)
    for method, expected in (("saliency", np.abs(slopes).sum(1)), ("squared_gradient", np.square(slopes).sum(1))):
        scores = scores_of(explainers.build(method), model, features, xy, 1)
        np.testing.assert_allclose(scores[patches], expected, rtol=1e-4, atol=1e-8)
        assert scores[attended] > 0


# --- guided backpropagation ----------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """Two layers with ReLU on each patch, mean, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 2)
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU()])

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        hidden = self.relus[0](self.first(features))
        return MILOutput(self.last(self.relus[1](self.second(hidden)).mean(0)), None)


def test_guided_backprop_is_the_gradient_with_negative_values_set_to_zero_at_every_relu() -> None:
    torch.manual_seed(0)
    model, (features, xy) = TwoLayers().double(), bag(25)
    layers = (model.first, model.second, model.last)
    first, second, last = ([part.detach().numpy() for part in (layer.weight, layer.bias)] for layer in layers)
    expected = []
    for x in features.numpy():
        inner = first[0] @ x + first[1]
        outer = second[0] @ np.maximum(inner, 0) + second[1]
        back = (last[0][1] - last[0][0]) / 25  # gradient of t, the log odds of class 1
        back = second[0].T @ np.where((outer > 0) & (back > 0), back, 0)
        back = first[0].T @ np.where((inner > 0) & (back > 0), back, 0)
        expected.append(np.abs(back).sum())
    scores = scores_of(explainers.build("guided_backprop"), model, features, xy, 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert np.ptp(scores) > 1e-3
    assert not np.allclose(scores, scores_of(explainers.build("saliency"), model, features, xy, 1), rtol=0.1)


def test_guided_backprop_fits_only_models_whose_relus_are_all_modules() -> None:
    for name in ("additive", "dtfd", "gtn"):  # additive: one of its two
        with pytest.raises(ConfigError, match="calls ReLU as a function, which cannot be hooked; this method needs"):
            scores_of(explainers.build("guided_backprop"), build(name), *bag(3), 1)
    without_relu = ExplainedModel(build("abmil", hidden=None))
    assert "has no ReLU" in (explainers.build("guided_backprop").fits(without_relu) or "")


@pytest.mark.parametrize("model_name", GUIDED)
def test_guided_backprop_leaves_no_hook_behind(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(40)
    before = model(features, xy).logits
    explainer, saliency = explainers.build("guided_backprop"), explainers.build("saliency")
    plain = scores_of(saliency, model, features, xy, 1)
    assert explainer.fits(ExplainedModel(model)) is None
    scores_of(explainer, model, features, xy, 1)
    assert torch.equal(model(features, xy).logits, before)
    np.testing.assert_array_equal(scores_of(saliency, model, features, xy, 1), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- integrated gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", MODELS)
def test_integrated_gradients_are_a_sum_of_gradients_along_the_path_of_whole_bags(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(40)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    for baseline, start in (("zero", torch.zeros_like(features)), ("mean", features.mean(0).expand_as(features))):
        expected = torch.zeros(40, dtype=torch.float64)
        for node, weight in zip(nodes, weights, strict=True):
            point = (start + (node + 1) / 2 * (features - start)).requires_grad_()
            (slopes,) = torch.autograd.grad(contrast(model(point, xy).logits, 1), point)
            expected += weight / 2 * (slopes * (features - start)).sum(1)
        found = attribute("integrated_gradients", model, features, xy, 1, steps=4, baseline=baseline)
        torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-7)
        assert found.scores.abs().max() > 1e-3, baseline


@pytest.mark.parametrize("model_name", CONTINUOUS)
def test_integrated_gradients_add_up_to_the_targets_change_from_an_empty_slide(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(300)
    found = attribute("integrated_gradients", model, features, xy, 1, steps=200)
    change = t(model, features, xy, 1) - t(model, 0 * features, xy, 1)
    assert found.scores.sum().item() == pytest.approx(change, abs=1e-3)
    assert abs(change) > 0.01


@pytest.mark.parametrize("model_name", MODELS)
def test_the_integration_error_is_reported(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(30)
    found = attribute("integrated_gradients", model, features, xy, 1, steps=2)
    assert found.residual["baseline"] == pytest.approx(t(model, 0 * features, xy, 1), abs=1e-12)
    whole = found.scores.sum().item() + sum(found.residual.values())
    assert whole == pytest.approx(t(model, features, xy, 1), abs=1e-12)
    assert [*found.residual] == ["baseline", "integration error"]


class MeanSquare(nn.Module):
    """Mean of the squared features over the bag; records the shapes of the bags that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        self.shapes.append(tuple(features.shape))
        value = features.square().mean()
        return MILOutput(torch.stack([0 * value, value]), None)


def test_a_model_is_called_with_one_whole_bag_per_step() -> None:
    model, (features, xy) = MeanSquare(), bag(25)
    scores = scores_of(explainers.build("integrated_gradients", steps=7), model, features, xy, 1)
    assert model.shapes == [(25, 8)] * 9  # seven steps and both ends
    np.testing.assert_allclose(scores, features.square().sum(1) / features.numel(), rtol=1e-6)  # exact: quadratic


def test_integrated_gradients_refuse_invalid_options() -> None:
    for option, value in (("steps", 0), ("steps", 1.5), ("steps", True), ("baseline", "black")):
        with pytest.raises(ConfigError, match=f"method option {option} is {value!r}"):
            explainers.build("integrated_gradients", **{option: value})


# --- Grad-CAM on the embedded patches ------------------------------------------------------------------------


def test_gradcam_of_mean_pooling_is_cam_the_positive_part_of_the_contribution() -> None:
    model, (features, xy) = build("mean", classes=3), bag(300)
    for target in range(3):
        scores = scores_of(explainers.build("gradcam_features"), model, features, xy, target)
        contributions = scores_of(explainers.build("contribution"), model, features, xy, target)
        np.testing.assert_allclose(scores, np.maximum(contributions, 0), atol=1e-8)
        assert (contributions > 0).any()


def test_gradcam_needs_a_layer_that_embeds_each_patch_independently() -> None:
    with pytest.raises(ConfigError, match="patch_embedding"):
        scores_of(explainers.build("gradcam_features"), build("gtn"), *bag(3), 1)


@pytest.mark.parametrize("model_name", EMBEDDING)
def test_gradcam_weights_each_unit_by_the_targets_change_when_it_rises_in_all_patches(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(40)
    module, step = embedding(model), 1e-6
    assert module is not None
    outputs: list[Tensor] = []
    with module.register_forward_hook(lambda _, __, output: outputs.append(output.detach())):
        model(features, xy)
    weights = torch.zeros(outputs[0].shape[1], dtype=torch.float64)
    for d in range(len(weights)):
        ends = []
        for sign in (1, -1):
            more = sign * step * torch.eye(len(weights), dtype=torch.float64)[d]
            with module.register_forward_hook(lambda _, __, output, more=more: output + more):
                ends.append(t(model, features, xy, 0))
        weights[d] = (ends[0] - ends[1]) / (2 * step) / 40  # the mean over patches of the gradient
    scores = scores_of(explainers.build("gradcam_features"), model, features, xy, 0)
    np.testing.assert_allclose(scores, (outputs[0] @ weights).clamp(min=0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model_name", EMBEDDING)
def test_recording_the_embedding_leaves_the_forward_pass_bit_for_bit_the_same(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(40)
    module = embedding(model)
    assert module is not None
    expected = model(features, xy).logits
    with embedded_leaf(module) as outputs:
        recorded = model(features, xy).logits
    assert torch.equal(recorded, expected)
    assert [len(h) for h in outputs] == [40]
    model(features, xy)
    assert len(outputs) == 1  # the hook has been removed
