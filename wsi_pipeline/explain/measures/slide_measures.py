"""Measure every method on one slide, on the members not trained on its patient: the torch part of evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...aggregate.checkpoint import ModelCard, check_fits
from ...aggregate.inference import bag_tensors, cpu_threads
from ...config import EvaluateConfig, ExplainConfig
from ...device import pick_device
from ...errors import SlideError
from ...predict.ensembles import load_members, predicted_class
from ...predict.member_logits import whole_bag
from ...rng import generator_for, seed_from
from ...types import Float64, PatchGrid, Unit
from ..explained_model import ExplainedModel, explained_model
from ..methods import Explainer, explainers, unit_for
from ..summary_maps.map_arithmetic import spearman
from .cost import Cost, measured
from .infidelity import Removals, infidelity, removals, squares
from .patch_flipping import Flipping, flipping, mean_scores, perturbable
from .random_baseline import RANDOM, random_scores
from .sanity import likeness, max_sensitivity, redrawn


@dataclass(frozen=True, eq=False)
class MethodMeasures:
    """Measures of one method on one slide."""

    flips: Mapping[str, Flipping]  # by kind of removal: "drop", "replace"
    infidelity: float  # NaN: not measured, or the unit is not attribution
    redrawn: float  # rank correlation with the redrawn model's map; NaN: not measured
    sensitivity: float  # NaN: not measured
    cost: Cost | None  # of the map, over all members
    unit: Unit | None  # of the scores; None for random scores
    maps: Mapping[str, Float64]  # class -> (N,), of the requested classes


@dataclass(frozen=True, eq=False)
class SlideMeasures:
    """Measures of all methods on one slide, random scores last."""

    grid: PatchGrid
    target: str  # the predicted class, whose maps and output are measured
    methods: Mapping[str, MethodMeasures]
    spearman: Float64  # (M, M) rank correlation of the maps


@dataclass(frozen=True)
class ExplainedSlide:
    """One slide's bag, and the members of the ensemble that explain it."""

    members: Sequence[ExplainedModel]
    cards: Sequence[ModelCard]
    features: Tensor
    xy: Tensor
    device: torch.device
    name: str  # of the slide

    def map(self, explainer: Explainer, target: int, members: Sequence[ExplainedModel] | None = None) -> Float64:
        """Mean scores (N,) of class ``target`` over the ensemble, or over other ``members``."""
        return mean_scores(explainer, members or self.members, self.features, self.xy, target)


def measure_slide(
    bag_path: Path,
    folders: Sequence[Path],
    methods: Sequence[str],
    explain: ExplainConfig,
    section: EvaluateConfig,
    shown: Collection[str],
) -> SlideMeasures:
    """Patch flipping, infidelity, sanity checks and cost of ``methods`` for the class that the ensemble predicts.

    Parameters
    ----------
    bag_path : Path
    folders : sequence of Path
        The ensemble's members that were not trained on the slide's patient.
    methods : sequence of str
        Each fits each member.
    explain, section : ExplainConfig, EvaluateConfig
    shown : collection of str
        Classes whose maps are returned as well: classes with an annotation to compare with.

    Raises
    ------
    SlideError
        Where the bag cannot be used, or a method gives scores that are not finite.
    """
    device = pick_device(explain.device)
    bag = whole_bag(bag_path)
    with cpu_threads(1):
        members = load_members(folders, str(device))
        for _, of_model in members:
            check_fits(of_model, bag, f"the bag of slide {bag.grid.slide_id!r}")
        features, xy = bag_tensors(bag, device)
        explained = [explained_model(module, of_model) for module, of_model in members]
        cards = [of_model for _, of_model in members]
        slide = ExplainedSlide(explained, cards, features.float(), xy, device, bag.grid.slide_id)
        target = predicted_class(members, bag, str(device))
        classes = cards[0].classes
        built = {name: explainers.build(name, **explain.options.get(name, {})) for name in methods}
        maps = {name: measured(partial(slide.map, e, target), device) for name, e in built.items()}
        _check({name: scores for name, (scores, _) in maps.items()}, slide.name)
        noise = random_scores(len(bag.grid), section.seed, slide.name)
        flips = _flips(slide, {**{n: s for n, (s, _) in maps.items()}, RANDOM: noise}, target, section)
        removed, fresh = _removals(slide, target, section), _redrawn(slide, section)
        found = {
            name: MethodMeasures(
                flips=flips[name],
                infidelity=_infidelity(removed, built[name], scores),
                redrawn=likeness(scores, slide.map(built[name], target, fresh)),
                sensitivity=_sensitivity(slide, built[name], target, section),
                cost=cost,
                unit=unit_for(built[name], explained[0]),
                maps={c: scores if c == classes[target] else slide.map(built[name], classes.index(c)) for c in shown},
            )
            for name, (scores, cost) in maps.items()
        }
    nan = float("nan")
    found[RANDOM] = MethodMeasures(flips[RANDOM], nan, nan, nan, None, None, dict.fromkeys(shown, noise))
    return SlideMeasures(bag.grid, classes[target], found, spearman([*(scores for scores, _ in maps.values()), noise]))


def _check(maps: Mapping[str, Float64], slide_id: str) -> None:
    for name, scores in maps.items():
        if not np.isfinite(scores).all():
            raise SlideError(
                f"{name} gives scores that are not finite for slide {slide_id!r}; "
                f"train the model again, or take the method out of explain.methods"
            )


def _flips(
    slide: ExplainedSlide, maps: Mapping[str, Float64], target: int, section: EvaluateConfig
) -> dict[str, dict[str, Flipping]]:
    """method -> kind of removal -> both curves."""
    stand_in = {"drop": None, **({"replace": slide.features.mean(0)} if section.replacement else {})}
    found: dict[str, dict[str, Flipping]] = {name: {} for name in maps}
    for removal, features in stand_in.items():
        perturbation = perturbable(slide.members, slide.features, slide.xy, features)
        for name, scores in maps.items():
            found[name][removal] = flipping(perturbation, scores, target, points=section.flipping_points)
    return found


def _removals(slide: ExplainedSlide, target: int, section: EvaluateConfig) -> Removals | None:
    if not section.infidelity_samples:
        return None
    generator = generator_for("infidelity", section.seed, slide.name)
    mask = squares(slide.xy.cpu().numpy(), section.infidelity_samples, generator)
    return removals(perturbable(slide.members, slide.features, slide.xy, slide.features.mean(0)), mask, target)


def _infidelity(removed: Removals | None, explainer: Explainer, scores: Float64) -> float:
    return infidelity(removed, scores) if removed and explainer.unit == "attribution" else float("nan")


def _redrawn(slide: ExplainedSlide, section: EvaluateConfig) -> list[ExplainedModel]:
    """Each member with new initial weights, different for each slide, so that accidental similarity averages out."""
    seeds = [seed_from("redrawn", section.seed, of_model.weights_sha256, slide.name) for of_model in slide.cards]
    return [
        explained_model(redrawn(of_model, slide.device, seed), of_model)
        for of_model, seed in zip(slide.cards, seeds, strict=True)
    ]


def _sensitivity(slide: ExplainedSlide, explainer: Explainer, target: int, section: EvaluateConfig) -> float:
    if not section.sensitivity_samples:
        return float("nan")
    generator = torch.Generator().manual_seed(seed_from("sensitivity", section.seed, slide.name))
    return max_sensitivity(
        lambda features: mean_scores(explainer, slide.members, features, slide.xy, target),
        slide.features,
        generator,
        samples=section.sensitivity_samples,
    )
