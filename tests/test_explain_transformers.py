"""The methods for TransMIL against their definitions: whole attention maps, their gradients, dense matrices."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explaining import LargestTensor, scores_of
from torch import Tensor, nn

from wsi_pipeline.aggregate import models
from wsi_pipeline.aggregate.nystrom import iterated_pinv
from wsi_pipeline.aggregate.transmil import TransLayer, TransMIL
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel, Target
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.transformer import attention_maps, relevance, trace

DIM, HIDDEN, LANDMARKS, STEPS = 7, 16, 10, 3
FORMS = list(product(["nystrom", "exact"], ["sequence", "grid"]))
METHODS = [
    "rollout",
    "gradcam_attention",
    "partial_lrp",
    "transformer_attribution",
    "generic_attribution",
    "token_wise",
    "head_wise",
]


def build(attention: str, position: str, classes: int = 3, heads: int = 4) -> TransMIL:
    torch.manual_seed(0)
    options = {"hidden": HIDDEN, "heads": heads, "landmarks": LANDMARKS}
    model = models.build("transmil", DIM, classes, attention=attention, position=position, **options)
    assert isinstance(model, TransMIL)
    with torch.no_grad():  # sharper attention than the initial weights give
        model.layer1.attn.to_qkv.weight.mul_(3)
        model.layer2.attn.to_qkv.weight.mul_(3)
        model.norm.bias.normal_(std=0.1)
    return model.double().eval()


def bag(patches: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    index = torch.arange(patches)
    features = torch.randn(patches, DIM, generator=generator, dtype=torch.float64)
    return features, torch.stack([index % 20, index // 20], 1).double()


def explained(method: str, model: nn.Module, features: Tensor, xy: Tensor, target: int = 1) -> Attribution:
    explainer = explainers.build(method, **({"steps": STEPS} if method in ("token_wise", "head_wise") else {}))
    return explainer(ExplainedModel(model), features, xy, target)


# --- the definition --------------------------------------------------------------------------------------------


@dataclass
class SlowLayer:
    tokens: Tensor  # (T, dim)
    normed: Tensor  # (T, dim)
    values: Tensor  # (H, P, d)
    map: Tensor  # (H, P, P), part of the graph
    attended: Tensor  # (H, P, d)
    convolved: Tensor  # (H, P, d)
    branch: Tensor  # (T, dim)
    padding: int


@dataclass
class Slow:
    layers: tuple[SlowLayer, SlowLayer]
    class_token: Tensor
    target: Tensor  # ()

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.target, [layer.map for layer in self.layers], retain_graph=True)


def slow_layer(layer: TransLayer, tokens: Tensor) -> SlowLayer:
    attention, normed = layer.attn, layer.norm(tokens)
    padding = 0 if attention.exact else -len(tokens) % LANDMARKS
    padded = torch.cat([tokens.new_zeros(padding, HIDDEN), normed])
    q, k, v = (x.view(len(padded), attention.heads, -1).transpose(0, 1) for x in attention.to_qkv(padded).chunk(3, 1))
    q = q * q.shape[2] ** -0.5
    if attention.exact:
        attended = (q @ k.mT).softmax(2)
    else:
        q_land, k_land = (x.reshape(attention.heads, LANDMARKS, -1, x.shape[2]).mean(2) for x in (q, k))
        inverse = iterated_pinv((q_land @ k_land.mT).softmax(2), 6)
        attended = (q @ k_land.mT).softmax(2) @ inverse @ (q_land @ k.mT).softmax(2)
    found, convolved = attended @ v, attention.res_conv(v[None])[0]
    branch = attention.to_out((found + convolved).transpose(0, 1).flatten(1))[padding:]
    return SlowLayer(tokens, normed, v, attended, found, convolved, branch, padding)


def slow(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Slow:
    h = model._fc1(features)
    if not model.grid:
        h = torch.cat([h, h[: int(np.ceil(len(h) ** 0.5)) ** 2 - len(h)]])
    first = slow_layer(model.layer1, torch.cat([model.cls_token[0], h]))
    tokens = first.tokens + first.branch
    around = model.pos_layer.on_grid(tokens[1:], xy) if model.grid else model.pos_layer.on_square(tokens[1:])
    last = slow_layer(model.layer2, torch.cat([tokens[:1], around]))
    class_token = (last.tokens + last.branch)[0]
    return Slow((first, last), class_token, contrast(model._fc2(model.norm(class_token)), target))


def slow_sum(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of two summands: in proportion, then scaled by the magnitudes of the two sums."""
    of_a, of_b = a / (a + b) * relevance, b / (a + b) * relevance
    size = of_a.sum().abs() + of_b.sum().abs()
    scaled = [part * part.sum().abs() / size * relevance.sum() / part.sum() for part in (of_a, of_b)]
    return scaled[0], scaled[1]


def slow_linear(products: Tensor, relevance: Tensor) -> Tensor:
    """Products x_i w_oi (..., o, i), relevance (..., o) -> (..., i): in proportion to the positive products."""
    positive = products.clamp(min=0)
    return (positive / positive.sum(-1, keepdim=True) * relevance[..., None]).sum(-2)


def slow_ppeg(model: TransMIL, tokens: Tensor, xy: Tensor, relevance: Tensor) -> Tensor:
    def around(tokens: Tensor) -> Tensor:
        return (model.pos_layer.on_grid(tokens, xy) if model.grid else model.pos_layer.on_square(tokens)) - tokens

    biases = around(torch.zeros_like(tokens))
    columns = []
    for s in range(len(tokens)):
        one = torch.zeros_like(tokens)
        one[s] = 1
        columns.append(around(one) - biases)
    kernel = torch.stack(columns, 2).round(decimals=14)  # (output token, channel, input token)
    skip, conv = slow_sum(tokens, around(tokens), relevance)
    return skip + slow_linear(kernel.transpose(0, 1) * tokens.T[:, None], conv.T).T


@torch.no_grad()
def slow_relevances(model: TransMIL, s: Slow, xy: Tensor, target: int) -> tuple[Tensor, Tensor, list[float]]:
    """R_A of both layers, (H, P, P), and the total relevance at each level."""
    first, last = s.layers
    at, heads = last.padding, len(last.map)
    read = model.norm(s.class_token)
    weight = contrast(model._fc2.weight.T, target)
    levels = [slow_linear((read * weight)[None], torch.ones(1).double())]
    skip, branch = slow_sum(last.tokens[0], last.branch[0], levels[0])
    out: Any = model.layer2.attn.to_out[0]
    mixed = slow_linear((last.attended + last.convolved)[:, at].flatten() * out.weight, branch)
    attended, convolved = slow_sum(last.attended[:, at].flatten(), last.convolved[:, at].flatten(), mixed)
    coefficients = attended.view(heads, 1, -1) / last.attended[:, at : at + 1]  # (H, 1, d)
    of_map = torch.zeros_like(last.map)
    of_map[:, at] = last.map[:, at] * (last.values * coefficients).sum(2) / 2
    of_values = last.map[:, at, :, None] * last.values * coefficients  # (H, P, d)
    taps = torch.zeros(heads, len(last.map[0]), dtype=torch.float64)
    reach = min(17, taps.shape[1] - at)
    taps[:, at : at + reach] = model.layer2.attn.res_conv.weight[:, 0, 16 : 16 + reach, 0]
    of_values += slow_linear(
        (last.values * taps[:, :, None]).transpose(1, 2)[:, :, None], convolved.view(heads, -1, 1)
    ).transpose(1, 2)
    of_values = of_values.transpose(0, 1).flatten(1)[at:]  # (T, dim)
    to_values = model.layer2.attn.to_qkv.weight[2 * HIDDEN :]
    tokens = slow_linear(last.normed[:, None] * to_values, of_values)
    tokens[0] += skip
    levels.append(tokens)
    below = first.tokens + first.branch
    tokens = torch.cat([tokens[:1], slow_ppeg(model, below[1:], xy, tokens[1:])])
    levels.append(tokens)
    _, branch = slow_sum(first.tokens, first.branch, tokens)
    out = model.layer1.attn.to_out[0]
    merged = [x[:, first.padding :].transpose(0, 1).flatten(1) for x in (first.attended, first.convolved)]  # (T, dim)
    mixed = slow_linear((merged[0] + merged[1])[:, None] * out.weight, branch)
    attended, _ = slow_sum(merged[0], merged[1], mixed)
    coefficients = (attended / merged[0]).unflatten(1, (heads, -1)).transpose(0, 1)  # (H, T, d)
    coefficients = F.pad(coefficients, (0, 0, first.padding, 0))
    return first.map * (coefficients @ first.values.mT) / 2, of_map, [float(level.sum()) for level in levels]


def identity(layer: SlowLayer) -> Tensor:
    return torch.eye(layer.map.shape[1], dtype=torch.float64)


def mean_map(layer: SlowLayer) -> Tensor:
    """Mean over heads; the identity for padding, which has no token in the layer below."""
    mean = layer.map.detach().mean(0).clone()
    mean[: layer.padding] = identity(layer)[: layer.padding]
    return mean


def slow_rollout(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    first, last = slow(model, features, xy, target).layers
    return ((mean_map(last) + identity(last)) / 2) @ ((mean_map(first) + identity(first)) / 2)


def slow_gradcam_attention(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    s = slow(model, features, xy, target)
    last, at = s.layers[1], s.layers[1].padding
    weights = s.gradients()[1][:, at, at + 1 :].mean(1)
    return torch.stack([w * a for w, a in zip(weights, last.map, strict=True)]).mean(0).clamp(min=0)


def slow_partial_lrp(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    s = slow(model, features, xy, target)
    return slow_relevances(model, s, xy, target)[1].clamp(min=0).mean(0)


def slow_transformer_attribution(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    s = slow(model, features, xy, target)
    result = identity(s.layers[0])
    for gradient, of_map in zip(s.gradients(), slow_relevances(model, s, xy, target)[:2], strict=True):
        step = (gradient * of_map).clamp(min=0).mean(0) + torch.eye(len(result))
        result = (step / step.sum(1, keepdim=True)) @ result
    return result


def slow_generic_attribution(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    s = slow(model, features, xy, target)
    result = identity(s.layers[0])
    for gradient, layer in zip(s.gradients(), s.layers, strict=True):
        result = result + (gradient * layer.map).clamp(min=0).mean(0) @ result
    return result


def slow_feedback(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    gradients = [slow(model, features * k / STEPS, xy, target).gradients()[1] for k in range(1, STEPS + 1)]
    return torch.stack(gradients).mean(0).clamp(min=0).mean(0)


def slow_token_wise(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    s = slow(model, features, xy, target)
    result = identity(s.layers[0])
    for layer, ran in zip(s.layers, (model.layer1, model.layer2), strict=True):
        out: Any = ran.attn.to_out[0]
        lengths = torch.zeros(len(result), dtype=torch.float64)
        for j, token in enumerate(layer.tokens):
            value = out.weight @ layer.values[:, layer.padding + j].flatten()
            lengths[layer.padding + j] = value.norm() / token.norm()
        result = result + mean_map(layer) @ lengths.diag() @ result
    return result.abs() * slow_feedback(model, features, xy, target)


def slow_head_wise(model: TransMIL, features: Tensor, xy: Tensor, target: int) -> Tensor:
    s = slow(model, features, xy, target)
    result = identity(s.layers[0])
    for gradient, layer in zip(s.gradients(), s.layers, strict=True):
        real = slice(layer.padding, None)
        importance = (layer.map.mT @ gradient)[:, real, real].abs().mean((1, 2))
        step = ((importance / importance.sum())[:, None, None] * layer.map).sum(0)
        step[: layer.padding] = 0  # no token of the layer below
        result = result + step @ result
    return result.abs() * slow_feedback(model, features, xy, target)


# --- streamed and materialised ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "position"), FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_a_streamed_method_is_the_definition(
    method: str, attention: str, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_maps, "ROWS", 128)
    monkeypatch.setattr(attention_maps, "COLUMNS", 100)
    model, (features, xy) = build(attention, position), bag(300)
    whole = globals()[f"slow_{method}"](model, features, xy, 1).detach()
    padding = len(whole) - (1 + 300 + (24 if position == "sequence" else 0))
    row = whole[padding]
    owned = row[padding + 1 :][:300].clone()
    for copy, share in enumerate(row[padding + 301 :]):
        owned[copy] += share
    found = explained(method, model, features, xy)
    precision = 1e-10 * float(row.abs().max())
    assert float(owned.abs().max()) > 1e-9
    torch.testing.assert_close(found.scores, owned, rtol=0, atol=precision)
    assert found.residual["class token"] == pytest.approx(float(row[padding]), abs=precision)
    assert found.residual["padding"] == pytest.approx(float(row[:padding].sum()), abs=precision)
    total = float(found.scores.sum()) + sum(found.residual.values())
    assert total == pytest.approx(float(row.sum()), rel=1e-10)


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_gradients_start_from_the_models_own_target_bit_for_bit(attention: str, position: str) -> None:
    model, (features, xy) = build(attention, position), bag(57)
    t = contrast(model(features, xy).logits, 2)
    traced = trace.trace(model, features, xy)
    assert torch.equal(trace.target_from_first(model, traced, traced.first.mixed, Target(2)), t)
    assert torch.equal(trace.target_from_last(model, traced, traced.last.mixed, Target(2)), t)


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_a_map_in_tiles_is_the_whole_map(attention: str, position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "ROWS", 7)
    monkeypatch.setattr(attention_maps, "COLUMNS", 5)
    model, (features, xy) = build(attention, position), bag(23)
    whole = slow(model, features, xy, 0).layers[0]
    expected = whole.map[:, whole.padding :].detach()
    with torch.no_grad():
        tiled = attention_maps.attention_map(trace.trace(model, features, xy).first)
        tile = tiled.tile(2, slice(3, 9), slice(4, 20))
        torch.testing.assert_close(tile, expected[2, 3:9, 4:20], rtol=0, atol=1e-13)
        x = torch.randn(4, expected.shape[1], 3, dtype=torch.float64)
        torch.testing.assert_close(tiled.pull(x), expected.mT @ x, rtol=0, atol=1e-12)


# --- properties ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["sequence", "grid"])
def test_rollout_of_exact_attention_sums_to_1(position: str) -> None:
    for patches in (1, 2, 40, 300):
        found = explained("rollout", build("exact", position), *bag(patches))
        assert float(found.scores.sum()) + found.residual["class token"] == pytest.approx(1, abs=1e-12)
        assert found.residual["padding"] == 0
        assert float(found.scores.min()) > 0


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_transformer_attribution_sums_to_1(attention: str, position: str) -> None:
    found = explained("transformer_attribution", build(attention, position), *bag(40))
    assert float(found.scores.sum()) + found.residual["class token"] == pytest.approx(1, abs=1e-12)
    assert float(found.scores.min()) >= 0


@pytest.mark.parametrize("method", METHODS)
def test_only_rollout_is_the_same_for_every_class(method: str) -> None:
    model, (features, xy) = build("nystrom", "sequence"), bag(40)
    scores = [explained(method, model, features, xy, target).scores for target in range(3)]
    same = torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])
    assert same == (method == "rollout") == (not explainers.build(method).class_specific)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "rollout"])
def test_without_gradient_all_patches_score_zero(method: str) -> None:
    for attention in ("nystrom", "exact"):
        model = build(attention, "sequence")
        with torch.no_grad():
            model._fc2.weight.zero_()
        found = explained(method, model, *bag(40))
        assert found.scores.tolist() == [0.0] * 40
        kept = {"transformer_attribution": 1.0, "generic_attribution": 1.0}.get(method, 0.0)  # of the identity
        assert found.residual == {"class token": kept, "padding": 0.0}


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_grad_cam_maps_of_two_classes_are_the_positive_and_negative_part_of_one_map(attention: str) -> None:
    model, (features, xy) = build(attention, "grid", classes=2), bag(40)
    scores = torch.stack([explained("gradcam_attention", model, features, xy, target).scores for target in (0, 1)])
    assert torch.equal(scores.min(0).values, torch.zeros(40))
    assert int((scores > 0).sum()) == 40


@pytest.mark.parametrize(("attention", "position"), FORMS)
def test_relevance_is_conserved_down_to_the_first_layer(attention: str, position: str) -> None:
    model, (features, xy) = build(attention, position), bag(60)
    with torch.no_grad():
        traced = trace.trace(model, features, xy)
        last = relevance.last_relevance(model, traced, Target(1))
        convolved = relevance.class_convolution(traced.last)
        attended = (traced.last.mixed - convolved) * last.attended.flatten()
        parts = torch.stack([last.skipped.sum(), attended.sum(), (convolved * last.convolved).sum()])
        assert float(parts.sum()) == pytest.approx(1, abs=1e-10)
        assert float(parts.abs().max()) <= 1  # no part exceeds the whole
        tokens = relevance.below_last(traced.last, last)
        assert float(tokens.sum()) == pytest.approx(1, abs=1e-10)
        inputs = traced.first.tokens + traced.first.attention.to_out(traced.first.mixed)
        below = relevance.below_ppeg(model, inputs[1:], xy, tokens[1:])
        assert float(below.sum()) == pytest.approx(float(tokens[1:].sum()), abs=1e-10)
        row = traced.last.class_row * traced.last.times_values(last.attended) / 2
        assert float(row.sum()) == pytest.approx(float(attended.sum()) / 2, abs=1e-10)


def test_with_one_head_head_wise_is_token_wise_without_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (features, xy) = build("nystrom", "sequence", heads=1), bag(40)
    with_lengths = explained("token_wise", model, features, xy).scores
    monkeypatch.setattr("wsi_pipeline.explain.methods.token_wise.lengthening", lambda _: 1)
    plain = explained("token_wise", model, features, xy).scores
    assert not torch.allclose(plain, with_lengths, rtol=1e-3)
    torch.testing.assert_close(explained("head_wise", model, features, xy).scores, plain, rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", ["token_wise", "head_wise"])
def test_feedback_over_one_step_is_that_of_the_bag_itself_and_invalid_steps_are_refused(method: str) -> None:
    model, (features, xy) = build("exact", "grid"), bag(20)
    gradient = slow(model, features, xy, 1).gradients()[1][:, 0].clamp(min=0).mean(0)
    explainer = explainers.build(method, steps=1)
    scores = explainer(ExplainedModel(model), features, xy, 1).scores
    assert ((scores > 0) == (gradient[1:] > 0)).all()
    for steps in (0, -1, True, 2.5):
        with pytest.raises(ConfigError, match="steps"):
            explainers.build(method, steps=steps)


@pytest.mark.parametrize("method", METHODS)
def test_patches_whose_embedding_is_zero_have_finite_scores(method: str) -> None:
    model = build("nystrom", "sequence")
    with torch.no_grad():
        model._fc1.get_parameter("0.bias").sub_(100)
    assert bool(explained(method, model, *bag(20)).scores.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_bags_of_all_sizes_have_one_finite_score_per_patch_in_the_models_precision(method: str) -> None:
    for form, (classes, dtype) in product(FORMS, ((2, torch.float32), (3, torch.float64))):
        model = build(*form, classes).to(dtype)
        for patches in (1, 2, 17, 400):
            features, xy = (x.to(dtype) for x in bag(patches))
            scores = explained(method, model, features, xy).scores
            assert scores.shape == (patches,), form
            assert scores.dtype == dtype, form
            assert bool(scores.isfinite().all()), (form, patches)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_stores_a_value_for_each_pair_of_patches_of_exact_attention(method: str) -> None:
    model, (features, xy) = build("exact", "sequence"), bag(1500)
    with LargestTensor() as largest:
        explained(method, model, features, xy)
    assert 1500 <= largest.values < 1500**2 / 4


@pytest.mark.parametrize("method", METHODS)
def test_modes_gradients_weights_and_hooks_of_transmil_are_restored(method: str) -> None:
    model, (features, xy) = build("nystrom", "sequence").train(), bag(20)
    model.layer1.eval()  # differs from the rest of the model
    model.cls_token.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = explained(method, model, features, xy).scores
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not features.requires_grad
    assert not first.requires_grad
    assert torch.equal(explained(method, model.eval(), features, xy).scores, first)


def test_every_form_of_transmil_fits_and_no_other_model() -> None:
    built, other = [ExplainedModel(build(*form)) for form in FORMS], models.build("abmil", DIM, 2)
    for method in METHODS:
        explainer = explainers.build(method)
        assert [explainer.fits(model) for model in built] == [None] * len(FORMS), method
        assert "needs a transmil model" in (explainer.fits(ExplainedModel(other)) or ""), method
        with pytest.raises(ConfigError, match="AttentionMIL has no class token"):
            scores_of(explainer, other, *bag(3), 1)
