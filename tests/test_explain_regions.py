"""LIME and KernelSHAP over regions: against their definitions, on sums, and Shapley values written out."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of
from test_explain import MODELS, bag, build
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel
from wsi_pipeline.explain.logit_contrast import contrast
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.regions import MOST, regions

METHODS = ["lime", "kernel_shap"]


def attribute(method: str, model: nn.Module, features: Tensor, xy: Tensor, target: int, **options: Any) -> Attribution:
    explainer = explainers.build(method, **options)
    return explainer(ExplainedModel(model), features, xy, target)


def t(model: nn.Module, features: Tensor, xy: Tensor, target: int) -> float:
    """The target of classification."""
    with torch.no_grad():
        return contrast(model(features, xy).logits, target).item()


# --- regions -------------------------------------------------------------------------------------------------


def test_regions_are_square_blocks_from_the_leftmost_and_topmost_patch() -> None:
    xy = torch.tensor([[5.0, 2], [6, 2], [7, 2], [9, 2], [5, 3], [7, 3], [5, 4], [8, 4]])
    assert regions(xy, 2).tolist() == [0, 0, 1, 2, 0, 1, 3, 4]
    assert regions(xy - 100, 2).tolist() == [0, 0, 1, 2, 0, 1, 3, 4]
    assert regions(xy, 1).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert regions(xy, 9).tolist() == [0] * 8


@pytest.mark.parametrize(("patches", "side"), [(1, 1), (60, 1), (61, 2), (240, 2), (250, 3), (1000, 5)])
def test_the_side_is_the_smallest_with_at_most_sixty_regions(patches: int, side: int) -> None:
    _, xy = bag(patches)
    found = regions(xy, None)
    assert found.tolist() == regions(xy, side).tolist()
    assert found.max() < MOST
    assert side == 1 or regions(xy, side - 1).max() >= MOST


def test_widely_scattered_patches_have_at_most_sixty_regions() -> None:
    generator = torch.Generator().manual_seed(0)
    region = regions(torch.randint(0, 500, (300, 2), generator=generator).float(), None)
    assert 30 < region.max() + 1 <= MOST


# --- both methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_for_a_sum_a_regions_score_is_its_patches_contribution(method: str, baseline: str) -> None:
    model, (features, xy) = build("mean", classes=3), bag(300)
    found = attribute(method, model, features, xy, 1, baseline=baseline)
    start = torch.zeros_like(features) if baseline == "zero" else features.mean(0).expand_as(features)
    contribution = explainers.build("contribution")
    of_bag, of_start = (scores_of(contribution, model, x, xy, 1).astype(float) for x in (features, start))
    change = of_bag - of_start
    region = regions(xy, None)
    assert region.max() + 1 == 40
    for r in range(40):
        own = (region == r).numpy()
        assert found.scores.numpy()[own].sum() == pytest.approx(change[own].sum(), abs=1e-6)
        assert len({*found.scores.numpy()[own].tolist()}) == 1  # distributed equally
    assert abs(found.residual["fit error"]) < 1e-6
    assert np.abs(change).max() > 1e-3


@pytest.mark.parametrize("model_name", MODELS)
def test_scores_and_residual_add_up_to_the_target(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(50)
    for method in METHODS:
        found = attribute(method, model, features, xy, 1, samples=20, region=3)
        whole = found.scores.sum().item() + sum(found.residual.values())
        assert whole == pytest.approx(t(model, features, xy, 1), abs=1e-9), method


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_a_single_region_has_the_whole_change_from_the_baseline(method: str, baseline: str) -> None:
    model, (features, xy) = build("transmil"), bag(9)
    start = 0 * features if baseline == "zero" else features.mean(0).expand_as(features)
    origin = t(model, start, xy, 1)
    found = attribute(method, model, features, xy, 1, region=10, baseline=baseline)
    np.testing.assert_allclose(found.scores, np.full(9, (t(model, features, xy, 1) - origin) / 9), atol=1e-12)
    assert found.residual == pytest.approx({"intercept": origin, "fit error": 0.0}, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_samples_depend_on_the_seed_only_and_leave_global_generators_unchanged(method: str) -> None:
    model, (features, xy) = build("abmil"), bag(40)
    first = attribute(method, model, features, xy, 1, samples=70).scores
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(attribute(method, model, features, xy, 1, samples=70).scores, first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]  # noqa: NPY002
    assert not torch.equal(attribute(method, model, features, xy, 1, samples=70, seed=1).scores, first)


@pytest.mark.parametrize("method", METHODS)
def test_invalid_options_are_refused(method: str) -> None:
    invalid = (("region", 0), ("samples", 1), ("samples", 2.5), ("baseline", "black"), ("seed", -1), ("seed", None))
    for option, value in invalid:
        with pytest.raises(ConfigError, match=f"method option {option} is {value!r}"):
            explainers.build(method, **{option: value})


# --- each against its definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["abmil", "transmil"])
def test_lime_is_a_weighted_linear_fit_over_slides_with_half_of_the_regions(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(40)
    found = attribute("lime", model, features, xy, 1, region=3, samples=50, seed=3)
    region = regions(xy, 3)
    count = int(region.max()) + 1
    generator = torch.Generator().manual_seed(3)
    rows, values = [], []
    for _ in range(50):
        kept = torch.bernoulli(torch.full((1, count), 0.5), generator=generator)[0]
        cosine = math.sqrt(kept.sum().item() / count)  # between kept and all
        weight = math.exp(-((1 - cosine) ** 2) / (2 * 0.25**2))
        rows.append([math.sqrt(weight) * x for x in (*kept.tolist(), 1.0)])
        values.append(math.sqrt(weight) * t(model, features * kept[region][:, None], xy, 1))
    *coefficients, intercept = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0].tolist()
    sizes = [int((region == r).sum()) for r in range(count)]
    expected = [coefficients[r] / sizes[r] for r in region.tolist()]
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    assert found.residual["intercept"] == pytest.approx(intercept, abs=1e-6)
    assert max(map(abs, expected)) > 1e-4


@pytest.mark.parametrize("model_name", MODELS)
def test_kernel_shap_adds_up_to_the_targets_change_from_an_empty_slide(model_name: str) -> None:
    model, (features, xy) = build(model_name, classes=3), bag(300)
    found = attribute("kernel_shap", model, features, xy, 0, samples=100)
    start = t(model, 0 * features, xy, 0)
    assert found.scores.sum().item() == pytest.approx(t(model, features, xy, 0) - start, abs=1e-5)
    assert found.residual["intercept"] == pytest.approx(start, abs=1e-5)
    assert abs(found.residual["fit error"]) < 1e-5


@pytest.mark.parametrize("model_name", ["abmil", "additive", "dsmil"])
def test_kernel_shap_is_near_the_shapley_values_over_all_orders(model_name: str) -> None:
    model, (features, xy) = build(model_name), bag(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    shapley = np.zeros(5)
    for order in permutations(range(5)):
        steps = [order[:n] for n in range(6)]
        for before, after in pairwise(steps):
            shapley[after[-1]] += sum(
                sign * t(model, features * torch.isin(torch.arange(5), torch.tensor(kept))[:, None], xy, 1)
                for sign, kept in ((1, after), (-1, before))
            )
    shapley /= math.factorial(5)
    found = attribute("kernel_shap", model, features, xy, 1, samples=2000).scores.numpy()
    np.testing.assert_allclose(found, shapley, atol=0.03 * np.abs(shapley).max())
    assert found.sum() == pytest.approx(shapley.sum(), abs=1e-5)
