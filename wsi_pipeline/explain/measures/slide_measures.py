"""Measure every method on one slide, by the members that have not seen its patient: the torch half of evaluation."""

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
from .random_baseline import RANDOM, chance
from .sanity import likeness, max_sensitivity, redrawn


@dataclass(frozen=True, eq=False)
class MethodMeasures:
    """One method on one slide."""

    flips: Mapping[str, Flipping]  # "drop", "replace"
    infidelity: float  # NaN: not measured, or no attribution
    redrawn: float  # likeness of the redrawn model's map; NaN: not measured
    sensitivity: float  # NaN: not measured
    cost: Cost | None  # of the map, over all members
    unit: Unit | None  # of its scores; None: random ones
    maps: Mapping[str, Float64]  # class -> (N,), of the classes that were asked for


@dataclass(frozen=True, eq=False)
class SlideMeasures:
    """All methods on one slide, the random scores last."""

    grid: PatchGrid
    target: str  # the class that is predicted, and whose probability is followed
    methods: Mapping[str, MethodMeasures]
    spearman: Float64  # (M, M) rank correlation of the maps


@dataclass(frozen=True)
class Subject:
    """What the maps of one slide are made of."""

    members: Sequence[ExplainedModel]
    cards: Sequence[ModelCard]
    features: Tensor
    xy: Tensor
    device: torch.device
    name: str  # of the slide

    def map(self, explainer: Explainer, target: int, members: Sequence[ExplainedModel] | None = None) -> Float64:
        """The ensemble's scores (N,) of class ``target``; or those of other ``members``."""
        return mean_scores(explainer, members or self.members, self.features, self.xy, target)


def measure_slide(
    bag_path: Path,
    folders: Sequence[Path],
    methods: Sequence[str],
    explain: ExplainConfig,
    section: EvaluateConfig,
    shown: Collection[str],
) -> SlideMeasures:
    """Flipping, sanity and cost of ``methods``, of the class that the ensemble predicts.

    ``shown``: the classes whose maps come, too: those that an annotation of the slide can tell of.
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
        subject = Subject(explained, cards, features.float(), xy, device, bag.grid.slide_id)
        target = predicted_class(members, bag, str(device))
        classes = cards[0].classes
        built = {name: explainers.build(name, **explain.options.get(name, {})) for name in methods}
        maps = {name: measured(partial(subject.map, e, target), device) for name, e in built.items()}
        _check({name: scores for name, (scores, _) in maps.items()}, subject.name)
        blind = chance(len(bag.grid), section.seed, subject.name)
        flips = _flips(subject, {**{n: s for n, (s, _) in maps.items()}, RANDOM: blind}, target, section)
        removed, fresh = _removals(subject, target, section), _redrawn(subject, section)
        found = {
            name: MethodMeasures(
                flips=flips[name],
                infidelity=_infidelity(removed, built[name], scores),
                redrawn=likeness(scores, subject.map(built[name], target, fresh)),
                sensitivity=_sensitivity(subject, built[name], target, section),
                cost=cost,
                unit=unit_for(built[name], explained[0]),
                maps={c: scores if c == classes[target] else subject.map(built[name], classes.index(c)) for c in shown},
            )
            for name, (scores, cost) in maps.items()
        }
    nan = float("nan")
    found[RANDOM] = MethodMeasures(flips[RANDOM], nan, nan, nan, None, None, dict.fromkeys(shown, blind))
    return SlideMeasures(bag.grid, classes[target], found, spearman([*(scores for scores, _ in maps.values()), blind]))


def _check(maps: Mapping[str, Float64], slide_id: str) -> None:
    for name, scores in maps.items():
        if not np.isfinite(scores).all():
            raise SlideError(
                f"{name} gives scores that are no numbers for slide {slide_id!r}; "
                f"train the model again, or take the method out of explain.methods"
            )


def _flips(
    subject: Subject, maps: Mapping[str, Float64], target: int, section: EvaluateConfig
) -> dict[str, dict[str, Flipping]]:
    """method -> way -> both curves."""
    stand_in = {"drop": None, **({"replace": subject.features.mean(0)} if section.replacement else {})}
    found: dict[str, dict[str, Flipping]] = {name: {} for name in maps}
    for way, features in stand_in.items():
        asked = perturbable(subject.members, subject.features, subject.xy, features)
        for name, scores in maps.items():
            found[name][way] = flipping(asked, scores, target, points=section.flipping_points)
    return found


def _removals(subject: Subject, target: int, section: EvaluateConfig) -> Removals | None:
    if not section.infidelity_samples:
        return None
    gone = squares(
        subject.xy.cpu().numpy(), section.infidelity_samples, generator_for("infidelity", section.seed, subject.name)
    )
    return removals(perturbable(subject.members, subject.features, subject.xy, subject.features.mean(0)), gone, target)


def _infidelity(removed: Removals | None, explainer: Explainer, scores: Float64) -> float:
    return infidelity(removed, scores) if removed and explainer.unit == "attribution" else float("nan")


def _redrawn(subject: Subject, section: EvaluateConfig) -> list[ExplainedModel]:
    """Each member with weights drawn anew, others for each slide, so that a chance likeness averages out."""
    seeds = [seed_from("redrawn", section.seed, of_model.weights_sha256, subject.name) for of_model in subject.cards]
    return [
        explained_model(redrawn(of_model, subject.device, seed), of_model)
        for of_model, seed in zip(subject.cards, seeds, strict=True)
    ]


def _sensitivity(subject: Subject, explainer: Explainer, target: int, section: EvaluateConfig) -> float:
    if not section.sensitivity_samples:
        return float("nan")
    generator = torch.Generator().manual_seed(seed_from("sensitivity", section.seed, subject.name))
    return max_sensitivity(
        lambda features: mean_scores(explainer, subject.members, features, subject.xy, target),
        subject.features,
        generator,
        samples=section.sensitivity_samples,
    )
