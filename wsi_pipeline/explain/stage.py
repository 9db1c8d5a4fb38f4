"""Explain every slide: each method that fits, on each model's members that have not seen the patient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..aggregate.checkpoint import check_fits
from ..aggregate.inference import bag_tensors, cpu_threads, fault
from ..artifacts import Provenance, content_key, read_key
from ..config import ExplainConfig
from ..device import pick_device
from ..engine import Job
from ..errors import ConfigError, SlideError, UnknownNameError
from ..predict.ensembles import card, find_ensembles, held_out_members, load_members, predicted_class
from ..project import AUTO, Project, read_selection
from ..store import read_bag, write_explanations
from ..types import Explanation, Float32, SlideRow
from .explained_model import ExplainedModel, explained_model, load_explained
from .methods import Explainer, explainers, unit_for
from .selection_job import selection_job
from .summary_maps.ensemble_maps import derived_jobs
from .summary_maps.training_reference import reference_jobs

_log = logging.getLogger("wsi_pipeline")


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """One file for each model, method and slide; one more method leaves the other methods' files alone.

    Raises ``UnknownNameError`` for a class that a model does not know, ``ConfigError`` for a method that fits no model.
    """
    section = project.config.explain
    members = find_ensembles(project)
    for label, folders in members.items():
        check_classes(section.classes or (), label, card(folders[0]).classes)
    kinds = {label: one_of_each_kind(folders) for label, folders in members.items()}
    fitting = fitting_methods(section, kinds)
    if AUTO in section.methods:
        yield [_choice_job(project, label, members[label], kinds[label]) for label in members]
        fitting = {label: _with_choice(project, label, fits) for label, fits in fitting.items()}
    patients = dict.fromkeys(slide.patient_id for slide in slides)
    held_out = {
        (label, patient): held_out_members(folders, patient, project.slides_of(patient))[0]
        for label, folders in members.items()
        for patient in patients
    }
    maps = []
    for label in members:
        for method in fitting[label]:
            measured = _measured(project, label, method)
            maps += [
                _job(project, slide, label, method, held_out[label, slide.patient_id], measured) for slide in slides
            ]
    yield maps
    if section.summary_maps:
        sampled: dict[Path, Job] = {}
        if "distance" in section.summary_maps:
            sampled = reference_jobs(project, {member for panel in held_out.values() for member in panel})
            yield list({job.output: job for job in sampled.values()}.values())
        references = {member: job.output for member, job in sampled.items()}
        yield derived_jobs(project, slides, fitting, held_out, references)


def _choice_job(project: Project, label: str, folders: Sequence[Path], kinds: Sequence[ExplainedModel]) -> Job:
    section = project.config.explain
    built = {name: explainers.build(name, **section.options.get(name, {})) for name in section.candidates}
    return selection_job(project, label, folders, [n for n, explainer in built.items() if not misfit(explainer, kinds)])


def _with_choice(project: Project, label: str, fits: Sequence[str]) -> list[str]:
    """The methods that the config names and that fit, ``auto`` replaced by the one that was picked."""
    named = project.config.explain.methods
    return [name for name in project.methods(label) if name in fits or name not in named]


def check_classes(wanted: Sequence[str], label: str, classes: Sequence[str]) -> None:
    """Every class that the config asks for is one of the model's."""
    for name in wanted:
        if name not in classes:
            raise UnknownNameError(f"explain.classes: {label} has no class {name!r}; it has: {', '.join(classes)}")


def one_of_each_kind(folders: Sequence[Path]) -> list[ExplainedModel]:
    """One member of each design in an ensemble: whether a method fits is asked of these."""
    kinds = {repr((card(folder).model, card(folder).options)): folder for folder in reversed(folders)}
    return load_explained(list(kinds.values()), "cpu")


def fitting_methods(section: ExplainConfig, models: Mapping[str, Sequence[ExplainedModel]]) -> dict[str, list[str]]:
    """The methods that fit each model. Raises ``ConfigError`` for a method that the config names and no model fits."""
    named = [name for name in section.methods if name != AUTO]
    methods = {name: explainers.build(name, **section.options.get(name, {})) for name in named}
    fitting = {
        label: [name for name, explainer in methods.items() if not misfit(explainer, kinds)]
        for label, kinds in models.items()
    }
    for label, kinds in models.items():
        for name, explainer in methods.items():
            if reason := misfit(explainer, kinds):
                _log.warning("%s has no map %r: it %s", label, name, reason)
    if section.methods == ExplainConfig().methods:  # the default list is an offer: each model takes what fits
        return fitting
    for name, explainer in methods.items():
        if not any(name in names for names in fitting.values()):
            why = "; ".join(f"{label} {misfit(explainer, kinds)}" for label, kinds in models.items())
            raise ConfigError(
                f"explain.methods: {name!r} fits no model here ({why}); methods that fit: {', '.join(_offer(models))}"
            )
    return fitting


def misfit(explainer: Explainer, models: Sequence[ExplainedModel]) -> str | None:
    """Why the method does not fit one of an ensemble's designs; None where it fits them all."""
    return next((reason for model in models if (reason := explainer.fits(model))), None)


def _offer(models: Mapping[str, Sequence[ExplainedModel]]) -> list[str]:
    built = {name: explainers.build(name) for name in explainers.names()}
    return [name for name, explainer in built.items() if not all(misfit(explainer, m) for m in models.values())]


def _job(
    project: Project,
    slide: SlideRow,
    label: str,
    method: str,
    folders: Sequence[Path],
    measured: Mapping[str, object],
) -> Job:
    section = project.config.explain
    bag = project.folder.bag(slide.slide_id)
    output = project.folder.explanation(label, method, slide.slide_id)
    # The other methods are left out, so that one more method is one more file and no other is made again.
    facts = {
        "config": {"classes": section.classes, "device": section.device},
        "method": method,
        "options": section.options.get(method, {}),
        "model": label,
        "members": [_identity(folder) for folder in folders],
        "upstream": read_key(bag),
        **measured,
    }
    provenance = Provenance.of(content_key(stage="explain", **facts), "explain", **facts)
    arguments = (bag, tuple(folders), label, method, section, measured)
    return Job(slide.slide_id, output, provenance, explain_slide, arguments)


def _measured(project: Project, label: str, method: str) -> dict[str, object]:
    """What the choice among the candidates found of the method; empty where it was none of them."""
    choice = read_selection(project.folder.selection(label)) if AUTO in project.config.explain.methods else None
    if choice is None or method not in choice.aupc:
        return {}
    return {"aupc": choice.aupc[method], "selected": method == choice.method}


def _identity(folder: Path) -> list[object]:
    """What decides a member's answers; its options belong to it, as the same weights can be run in two ways."""
    found = card(folder)
    return [found.weights_sha256, found.model, found.options, found.classes]


def explain_slide(
    bag_path: Path,
    folders: Sequence[Path],
    label: str,
    method: str,
    section: ExplainConfig,
    measured: Mapping[str, Any],
    *,
    output: Path,
    provenance: Provenance,
) -> int:
    """Write one method's scores of one slide, the mean over the members; returns the number of patches.

    ``measured``: the method's ``aupc`` and whether it is ``selected``, where that is known.
    """
    device = pick_device(section.device)
    explainer = explainers.build(method, **section.options.get(method, {}))
    bag = read_bag(bag_path)
    if reason := fault(bag):
        raise SlideError(f"the bag {bag_path} {reason}")
    with cpu_threads(1):
        members = load_members(folders, str(device))
        for _, of_model in members:
            check_fits(of_model, bag, f"the bag of slide {bag.grid.slide_id!r}")
        explained = [explained_model(module, of_model) for module, of_model in members]
        first = explained[0]
        targets = target_classes(section.classes, first, lambda: predicted_class(members, bag, str(device)))
        features, xy = bag_tensors(bag, device)
        found = [mean_attribution(explainer, explained, features.float(), xy, target) for target in targets]
    if not all(np.isfinite(scores).all() for scores, _ in found):
        raise SlideError(
            f"{method} of {label} gives scores that are not finite for slide {bag.grid.slide_id!r}; "
            f"train the model again, or take the method out of explain.methods"
        )
    unit, signed = unit_for(explainer, first), explainer.signed
    explanations = [
        Explanation(bag.grid, scores, method, label, first.classes[target], unit, signed, residual, **measured)
        for (scores, residual), target in zip(found, targets, strict=True)
    ]
    write_explanations(output, explanations, provenance)
    return len(bag.grid)


def target_classes(wanted: Sequence[str] | None, explained: ExplainedModel, predicted: Callable[[], int]) -> list[int]:
    """Indices of the classes to explain: ``wanted``, else by task.

    Classification: the positive one of two, of more the predicted one. Multilabel: both of two labels, of more the
    likeliest one. Regression and survival: the one output.
    """
    classes = explained.classes
    if wanted is not None:
        return [classes.index(name) for name in dict.fromkeys(wanted)]
    if len(classes) > 2:
        return [predicted()]
    return list(range(len(classes))) if explained.link == "sigmoid" else [len(classes) - 1]


def mean_attribution(
    explainer: Explainer, members: Sequence[ExplainedModel], features: Tensor, xy: Tensor, target: int
) -> tuple[Float32, dict[str, float]]:
    """Scores (N,) and the residual, each the mean over an ensemble's members."""
    found = [explainer(member, features, xy, target) for member in members]
    scores: Float32 = np.mean([one.scores.double().cpu().numpy() for one in found], axis=0).astype(np.float32)
    places = dict.fromkeys(place for one in found for place in one.residual)
    return scores, {place: sum(one.residual.get(place, 0.0) for one in found) / len(members) for place in places}
