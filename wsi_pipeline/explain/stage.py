"""Explain every slide: each method that fits, by each model's members that were not trained on the patient."""

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
from .method_selection import selection_job
from .methods import Explainer, explainers, unit_for
from .summary_maps.ensemble_maps import summary_map_jobs
from .summary_maps.training_reference import reference_jobs

_log = logging.getLogger("wsi_pipeline")


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """Batches of jobs: selection of methods, one file per model, method and slide, and summary maps.

    Each file depends on its own method only, so adding a method leaves the other methods' files unchanged.

    Parameters
    ----------
    project : Project
    slides : sequence of SlideRow
        Slides with a current bag.

    Yields
    ------
    list of Job
        A batch may depend on the files of earlier ones.

    Raises
    ------
    UnknownNameError
        For a class that a model does not have.
    ConfigError
        For a method that fits no model.
    """
    section = project.config.explain
    members = find_ensembles(project)
    for label, folders in members.items():
        check_classes(section.classes or (), label, card(folders[0]).classes)
    kinds = {label: one_of_each_kind(folders) for label, folders in members.items()}
    fitting = fitting_methods(section, kinds)
    if AUTO in section.methods:
        yield [_selection_job(project, label, members[label], kinds[label]) for label in members]
        fitting = {label: _with_selection(project, label, fits) for label, fits in fitting.items()}
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
            sampled = reference_jobs(project, {member for folders in held_out.values() for member in folders})
            yield list({job.output: job for job in sampled.values()}.values())
        references = {member: job.output for member, job in sampled.items()}
        yield summary_map_jobs(project, slides, fitting, held_out, references)


def _selection_job(project: Project, label: str, folders: Sequence[Path], kinds: Sequence[ExplainedModel]) -> Job:
    section = project.config.explain
    built = {name: explainers.build(name, **section.options.get(name, {})) for name in section.candidates}
    return selection_job(project, label, folders, [n for n, explainer in built.items() if not misfit(explainer, kinds)])


def _with_selection(project: Project, label: str, fits: Sequence[str]) -> list[str]:
    """The config's methods that fit, with ``auto`` replaced by the selected one."""
    named = project.config.explain.methods
    return [name for name in project.methods(label) if name in fits or name not in named]


def check_classes(wanted: Sequence[str], label: str, classes: Sequence[str]) -> None:
    """Check that the model has every class of the config; raises ``UnknownNameError``."""
    for name in wanted:
        if name not in classes:
            raise UnknownNameError(f"explain.classes: {label} has no class {name!r}; it has: {', '.join(classes)}")


def one_of_each_kind(folders: Sequence[Path]) -> list[ExplainedModel]:
    """One member of each design in an ensemble, on which ``misfit`` checks whether a method fits."""
    kinds = {repr((card(folder).model, card(folder).options)): folder for folder in reversed(folders)}
    return load_explained(list(kinds.values()), "cpu")


def fitting_methods(section: ExplainConfig, models: Mapping[str, Sequence[ExplainedModel]]) -> dict[str, list[str]]:
    """The methods of the config that fit each model; a misfit is logged in one line.

    Parameters
    ----------
    section : ExplainConfig
    models : mapping of str to sequence of ExplainedModel
        Label -> one member of each design.

    Raises
    ------
    ConfigError
        For a method that the config names and that fits no model; the default list is exempt.
    """
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
    if section.methods == ExplainConfig().methods:  # of the default list, each model uses what fits
        return fitting
    for name, explainer in methods.items():
        if not any(name in names for names in fitting.values()):
            why = "; ".join(f"{label} {misfit(explainer, kinds)}" for label, kinds in models.items())
            fits = ", ".join(_fits_any(models))
            raise ConfigError(f"explain.methods: {name!r} fits no model here ({why}); methods that fit: {fits}")
    return fitting


def misfit(explainer: Explainer, models: Sequence[ExplainedModel]) -> str | None:
    """Why the method does not fit one of an ensemble's designs; None if it fits all of them."""
    return next((reason for model in models if (reason := explainer.fits(model))), None)


def _fits_any(models: Mapping[str, Sequence[ExplainedModel]]) -> list[str]:
    built = {entry.name: method for entry in explainers.entries() if (method := entry.try_build()[0]) is not None}
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
    # The other methods are left out, so that adding a method adds files and remakes none.
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
    """AUPC of the method from the selection, and whether it was selected; empty if it was not a candidate."""
    selection = read_selection(project.folder.selection(label)) if AUTO in project.config.explain.methods else None
    if selection is None or method not in selection.aupc:
        return {}
    return {"aupc": selection.aupc[method], "selected": method == selection.method}


def _identity(folder: Path) -> list[object]:
    """What determines a member's output; options are included, as the same weights can be run in two ways."""
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
    """Write one method's scores of one slide, the mean over the members.

    Parameters
    ----------
    bag_path : Path
    folders : sequence of Path
        The members.
    label, method : str
        Names of the model and the method.
    section : ExplainConfig
    measured : mapping
        The method's ``aupc`` and whether it is ``selected``, where known.
    output : Path
    provenance : Provenance

    Returns
    -------
    int
        Number of patches.

    Raises
    ------
    SlideError
        Where the bag cannot be used or the scores are not finite.
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

    Classification: the positive one of two classes; of more, the predicted one. Multilabel: both of two labels; of
    more, the most probable one. Regression and survival: the single output.
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
    """Scores (N,) and residual, both the mean over an ensemble's members."""
    found = [explainer(member, features, xy, target) for member in members]
    scores: Float32 = np.mean([one.scores.double().cpu().numpy() for one in found], axis=0).astype(np.float32)
    places = dict.fromkeys(place for one in found for place in one.residual)
    return scores, {place: sum(one.residual.get(place, 0.0) for one in found) / len(members) for place in places}
