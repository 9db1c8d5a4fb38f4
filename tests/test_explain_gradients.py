"""Gradients, integrated gradients and Grad-CAM: against finite differences and their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from test_explain import MODELS, bag, build
from torch import Tensor, nn

from wsi_pipeline.aggregate import MILOutput
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.patch_embedding import embedded_leaf, embedding

CONTINUOUS = [name for name in MODELS if name != "dsmil"]  # it jumps where another patch becomes critical


def answer(model: nn.Module, features: Tensor, xy: Tensor, target: int) -> float:
    with torch.no_grad():
        return contrast(model(features, xy).logits, target).item()


def attribute(method: str, model: nn.Module, features: Tensor, xy: Tensor, target: int, **options: Any) -> Attribution:
    explainer = explainers.build(method, **options)
    return explainer(ExplainedModel(model), features, xy, target)


@pytest.mark.parametrize("model_name", MODELS)
def test_saliency_and_squared_gradient_are_sizes_of_finite_differences(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(300)
    with torch.no_grad():
        weight = model(features, xy).attention
    most = 0 if weight is None else int(weight.reshape(-1, 300)[-1].argmax())
    step, patches = 1e-6, [most, 299]
    slopes = np.zeros((len(patches), features.shape[1]))
    for row, k in enumerate(patches):
        for d in range(features.shape[1]):
            ends = []
            for sign in (1, -1):
                moved = features.clone()
                moved[k, d] += sign * step
                ends.append(answer(model, moved, xy, 1))
            slopes[row, d] = (ends[0] - ends[1]) / (2 * step)
    for method, expected in (("saliency", np.abs(slopes).sum(1)), ("squared_gradient", np.square(slopes).sum(1))):
        scores = scores_of(explainers.build(method), model, features, xy, 1)
        np.testing.assert_allclose(scores[patches], expected, rtol=1e-4, atol=1e-8)
        assert scores[most] > 0


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


def test_guided_backprop_is_the_gradient_of_which_no_relu_lets_what_is_below_zero_back() -> None:
    torch.manual_seed(0)
    model, (features, xy) = TwoLayers().double(), bag(25)
    layers = (model.first, model.second, model.last)
    first, second, last = ([part.detach().numpy() for part in (layer.weight, layer.bias)] for layer in layers)
    expected = []
    for x in features.numpy():
        inner = first[0] @ x + first[1]
        outer = second[0] @ np.maximum(inner, 0) + second[1]
        back = (last[0][1] - last[0][0]) / 25  # of t, the log odds of class 1
        back = second[0].T @ np.where((outer > 0) & (back > 0), back, 0)
        back = first[0].T @ np.where((inner > 0) & (back > 0), back, 0)
        expected.append(np.abs(back).sum())
    scores = scores_of(explainers.build("guided_backprop"), model, features, xy, 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert np.ptp(scores) > 1e-3
    assert not np.allclose(scores, scores_of(explainers.build("saliency"), model, features, xy, 1), rtol=0.1)


GUIDED = [name for name in MODELS if explainers.build("guided_backprop").fits(ExplainedModel(build(name))) is None]


def test_guided_backprop_fits_the_models_all_of_whose_relus_are_modules() -> None:
    assert GUIDED == ["abmil", "clam_mb", "clam_sb", "dsmil", "max", "mean", "smile", "transmil"]
    for name in ("additive", "dtfd", "gtn"):  # additive: one of its two
        with pytest.raises(ConfigError, match="calls ReLU as a function, which cannot be hooked; this method needs"):
            scores_of(explainers.build("guided_backprop"), build(name), *bag(3), 1)
    assert "has no ReLU" in (
        explainers.build("guided_backprop").fits(ExplainedModel(build("abmil", hidden=None))) or ""
    )


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


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("model_name", MODELS)
def test_integrated_gradients_are_a_sum_of_gradients_on_the_way_one_whole_bag_each(
    model_name: str, baseline: str
) -> None:
    model, (features, xy) = build(model_name), bag(40)
    start = torch.zeros_like(features) if baseline == "zero" else features.mean(0).expand_as(features)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    expected = torch.zeros(40, dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        there = (start + (node + 1) / 2 * (features - start)).requires_grad_()
        (slopes,) = torch.autograd.grad(contrast(model(there, xy).logits, 1), there)
        expected += weight / 2 * (slopes * (features - start)).sum(1)
    found = attribute("integrated_gradients", model, features, xy, 1, steps=4, baseline=baseline)
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-7)
    assert found.scores.abs().max() > 1e-3


@pytest.mark.parametrize("model_name", CONTINUOUS)
def test_integrated_gradients_add_up_to_the_answer_less_that_of_the_empty_slide(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(300)
    found = attribute("integrated_gradients", model, features, xy, 1, steps=200)
    gained = answer(model, features, xy, 1) - answer(model, 0 * features, xy, 1)
    assert found.scores.sum().item() == pytest.approx(gained, abs=1e-3)
    assert abs(gained) > 0.01


@pytest.mark.parametrize("model_name", MODELS)
def test_what_integrated_gradients_miss_is_told(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(30)
    found = attribute("integrated_gradients", model, features, xy, 1, steps=2)
    assert found.residual["baseline"] == pytest.approx(answer(model, 0 * features, xy, 1), abs=1e-12)
    whole = found.scores.sum().item() + sum(found.residual.values())
    assert whole == pytest.approx(answer(model, features, xy, 1), abs=1e-12)
    assert [*found.residual] == ["baseline", "integration error"]


class Watched(nn.Module):
    """Mean of squares of each patch's features over the bag; remembers the shapes of the bags it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        self.shapes.append(tuple(features.shape))
        value = features.square().mean()
        return MILOutput(torch.stack([0 * value, value]), None)


def test_a_model_is_given_one_whole_bag_a_step() -> None:
    model, (features, xy) = Watched(), bag(25)
    scores = scores_of(explainers.build("integrated_gradients", steps=7), model, features, xy, 1)
    assert model.shapes == [(25, 8)] * 9  # seven steps and both ends
    np.testing.assert_allclose(scores, features.square().sum(1) / features.numel(), rtol=1e-6)  # exact: quadratic


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1.5}, {"steps": True}, {"baseline": "black"}])
def test_integrated_gradients_refuse_other_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"method option {next(iter(options))}"):
        explainers.build("integrated_gradients", **options)


# --- Grad-CAM on the embedded patches ------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 1, 2])
def test_gradcam_of_mean_pooling_is_cam_the_contribution_above_zero(target: int) -> None:
    model, (features, xy) = build("mean", classes=3), bag(300)
    scores = scores_of(explainers.build("gradcam_features"), model, features, xy, target)
    contributions = scores_of(explainers.build("contribution"), model, features, xy, target)
    np.testing.assert_allclose(scores, np.maximum(contributions, 0), atol=1e-8)
    assert (contributions > 0).any()


EMBEDDING = [name for name in MODELS if explainers.build("gradcam_features").fits(ExplainedModel(build(name))) is None]


def test_gradcam_fits_the_models_that_embed_each_patch_alone() -> None:
    assert EMBEDDING == ["abmil", "additive", "clam_mb", "clam_sb", "dtfd", "max", "mean", "smile", "transmil"]
    with pytest.raises(ConfigError, match="patch_embedding"):
        scores_of(explainers.build("gradcam_features"), build("gtn"), *bag(3), 1)


@pytest.mark.parametrize("model_name", EMBEDDING)
def test_gradcam_weighs_each_unit_by_how_the_answer_moves_when_all_patches_have_more_of_it(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(40)
    module, step = embedding(model), 1e-6
    assert module is not None
    seen: list[Tensor] = []
    with module.register_forward_hook(lambda _, __, output: seen.append(output.detach())):
        model(features, xy)
    weights = torch.zeros(seen[0].shape[1], dtype=torch.float64)
    for d in range(len(weights)):
        ends = []
        for sign in (1, -1):
            more = sign * step * torch.eye(len(weights), dtype=torch.float64)[d]
            with module.register_forward_hook(lambda _, __, output, more=more: output + more):
                ends.append(answer(model, features, xy, 0))
        weights[d] = (ends[0] - ends[1]) / (2 * step) / 40  # the mean over patches of the gradient
    scores = scores_of(explainers.build("gradcam_features"), model, features, xy, 0)
    np.testing.assert_allclose(scores, (seen[0] @ weights).clamp(min=0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model_name", EMBEDDING)
def test_the_forward_pass_that_gradcam_watches_is_the_models_own_bit_for_bit(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(40)
    module = embedding(model)
    assert module is not None
    alone = model(features, xy).logits
    with embedded_leaf(module) as seen:
        watched = model(features, xy).logits
    assert torch.equal(watched, alone)
    assert [len(h) for h in seen] == [40]
    model(features, xy)
    assert len(seen) == 1  # nothing listens any more
