"""Single patches: left out of the slide, and classified by the model's own classifier of patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from test_explain import DIM, MODELS, bag, build
from torch import Tensor, nn

from wsi_pipeline.aggregate import MILOutput, WeightedMean
from wsi_pipeline.aggregate.dtfd import DTFD
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.methods.instance_head import probabilities
from wsi_pipeline.explain.methods.leave_one_out import closed_form, one_by_one

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("abmil", {"gated": True}),
    ("abmil", {"gated": False}),
    ("abmil", {"hidden": None}),
    ("clam_mb", {}),
    ("clam_sb", {}),
    ("mean", {}),
]


# --- leave one out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_name", "options"), FORMS)
def test_the_closed_form_is_the_loop(model_name: str, options: dict[str, Any]) -> None:
    for classes in (2, 3):
        model, (features, xy) = build(model_name, classes, **options), bag(300)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)  # away from the near-uniform attention of initial weights
            found, expected = closed_form(model, features, xy), one_by_one(model, features, xy)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
        assert expected.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("model_name", "score"),
    [("abmil", "score"), ("clam_mb", "attention_net.3.attention_c"), ("clam_sb", "attention_net.3.attention_c")],
)
def test_the_closed_form_is_the_loop_where_one_patch_has_all_attention(model_name: str, score: str) -> None:
    for factor in (3e2, 1e3, 1e6):
        model, (features, xy) = build(model_name), bag(20)
        with torch.no_grad():
            model.get_parameter(f"{score}.weight").mul_(factor)
            assert model(features, xy).attention.max() > 0.6
            found, expected = closed_form(model, features, xy), one_by_one(model, features, xy)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
        assert expected.abs().max() > 1e-2


@pytest.mark.parametrize("model_name", MODELS)
def test_leave_one_out_is_the_targets_change_when_the_patch_is_removed(model_name: str) -> None:
    model = build(model_name, classes=3)
    for patches in (2, 9):
        features, xy = bag(patches)
        scores = scores_of(explainers.build("leave_one_out", naive=True), model, features, xy, 2)
        with torch.no_grad():
            for k in range(patches):
                rest = [j for j in range(patches) if j != k]
                change = contrast(model(features, xy).logits - model(features[rest], xy[rest]).logits, 2).item()
                assert scores[k] == pytest.approx(change, abs=1e-6)


def test_a_slide_of_one_patch_is_compared_with_the_bias_or_with_a_patch_of_zeros() -> None:
    features, xy = bag(1)
    closed, naive = explainers.build("leave_one_out"), explainers.build("leave_one_out", naive=True)
    with torch.no_grad():
        model = build("abmil")
        change = contrast(model(features, xy).logits - model.get_parameter("classify.bias"), 1).item()
        assert scores_of(closed, model, features, xy, 1) == pytest.approx([change], abs=1e-6)
        model = build("transmil")
        change = contrast(model(features, xy).logits - model(0 * features, xy).logits, 1).item()
        assert scores_of(naive, model, features, xy, 1) == pytest.approx([change], abs=1e-6)


def test_leave_one_out_fits_every_model_on_request() -> None:
    naive = explainers.build("leave_one_out", naive=True)
    assert [name for name in MODELS if naive.fits(ExplainedModel(build(name))) is not None] == []
    with pytest.raises(ConfigError, match="naive: true"):
        scores_of(explainers.build("leave_one_out"), build("smile"), *bag(3), 1)
    with pytest.raises(ConfigError, match="method option naive is 'yes'"):
        explainers.build("leave_one_out", naive="yes")


# --- the model's own classifier of patches -------------------------------------------------------------------


def slow_dtfd(model: DTFD, features: Tensor, xy: Tensor) -> tuple[list[list[float]], list[int]]:
    """L_k^c = K a_k w_c · h_k as loops, and each patch's pseudo-bag."""
    pseudo_bag: list[int] = model.split(xy).long().argmax(0).tolist()
    weight = model.get_parameter("classifier.fc.weight")
    embedded = (features @ model.get_parameter("dim_reduction.fc1.weight").T).clamp(min=0)
    scores = model.get_submodule("attention")(embedded).tolist()
    logits = []
    for k, score in enumerate(scores):
        own = [math.exp(scores[j]) for j in range(len(scores)) if pseudo_bag[j] == pseudo_bag[k]]
        attention = math.exp(score) / sum(own)
        logits.append([len(own) * attention * float(row @ embedded[k]) for row in weight])
    return logits, pseudo_bag


@pytest.mark.parametrize("distill", ["afs", "maxs", "maxmins"])
def test_for_dtfd_it_is_the_softmax_of_the_derived_logits_whose_mean_plus_bias_is_the_first_tiers(distill: str) -> None:
    model, (features, xy) = build("dtfd", classes=3, distill=distill), bag(30)
    assert isinstance(model, DTFD)
    with torch.no_grad():
        logits, pseudo_bag = slow_dtfd(model, features, xy)
        of_bags = model.pseudo_bag_logits(features, xy)
    scores = scores_of(explainers.build("instance_head"), model, features, xy, 1)
    for k, row in enumerate(logits):
        assert scores[k] == pytest.approx(math.exp(row[1]) / sum(map(math.exp, row)), abs=1e-6)
    for p, of_bag in enumerate(of_bags):
        mean = np.mean([row for row, own in zip(logits, pseudo_bag, strict=True) if own == p], axis=0)
        np.testing.assert_allclose(mean + model.get_parameter("classifier.fc.bias").detach().numpy(), of_bag, atol=1e-6)


@pytest.mark.parametrize("model_name", ["clam_sb", "clam_mb"])
def test_for_clam_it_is_the_classs_instance_classifier(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(30)
    scores = scores_of(explainers.build("instance_head"), model, features, xy, 2)
    layer = model.get_submodule("attention_net.0")
    with torch.no_grad():
        for k in range(30):
            absent, present = model.get_submodule("instance_classifiers.2")(layer(features[k]).clamp(min=0)).tolist()
            assert scores[k] == pytest.approx(math.exp(present) / (math.exp(absent) + math.exp(present)), abs=1e-6)


def test_for_dsmil_it_is_the_softmax_of_the_instance_stream() -> None:
    model, (features, xy) = build("dsmil", classes=3), bag(30)
    scores = scores_of(explainers.build("instance_head"), model, features, xy, 0)
    weight, bias = (model.get_parameter(f"i_classifier.fc.0.{name}").detach() for name in ("weight", "bias"))
    for k in range(30):
        row = [math.exp(float(w @ features[k] + b)) for w, b in zip(weight, bias, strict=True)]
        assert scores[k] == pytest.approx(row[0] / sum(row), abs=1e-6)


def test_multilabel_logits_have_a_sigmoid_each() -> None:
    one_label = ExplainedModel(build("dsmil"), "multilabel")
    found = probabilities(torch.tensor([[0.0], [math.log(3)]]), one_label)
    torch.testing.assert_close(found, torch.tensor([[0.5], [0.75]]))


class OwnModel(nn.Module):
    """A user's attention-based MIL that states its weighted mean and nothing else; its head comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(5, 2)
        self.embed, self.score = nn.Linear(DIM, 5), nn.Linear(5, 1)

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        embedded = self.embed(features)
        attention = self.score(embedded).squeeze(1).softmax(0)  # (N,)
        return MILOutput(self.classify(attention @ embedded), attention)

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean:
        embedded = self.embed(features)
        return WeightedMean(self.score(embedded), embedded @ self.classify.weight.T, self.classify.bias)


def test_a_users_own_weighted_mean_needs_no_forward_pass_for_each_patch() -> None:
    torch.manual_seed(0)
    model, (features, xy) = OwnModel().double().eval(), bag(25)
    explainer = explainers.build("leave_one_out")
    assert explainer.fits(ExplainedModel(model)) is None
    with torch.no_grad():
        expected = contrast(one_by_one(model, features, xy), 1)
    np.testing.assert_allclose(scores_of(explainer, model, features, xy, 1), expected, atol=1e-6)
