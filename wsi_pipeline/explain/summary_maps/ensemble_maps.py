"""Maps made of maps and of the ensemble: what the methods agree on, and how sure of a patch one can be.

``consensus``, ``agreement``: of the methods' maps. ``spread``, ``sign_agreement``: over the members, of the method
that was picked, else of the first that is signed. ``entropy``: of each patch's own probability. ``distance``: to what
training has seen.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...aggregate.inference import bag_tensors, cpu_threads
from ...artifacts import Provenance, content_key, discard, read_key
from ...config import ExplainConfig
from ...device import pick_device
from ...engine import Job
from ...outcome import outcome
from ...predict.ensembles import card
from ...project import AUTO, Project, read_selection
from ...store import read_bag, read_explanations, write_explanations
from ...types import Explanation, FeatureBag, Float64, SlideRow, Unit
from ..explained_model import ExplainedModel, load_explained
from ..frozen import frozen
from ..methods import explainers
from ..single_patch import logits_alone
from .map_arithmetic import agreement, consensus, faithful_weights
from .map_uncertainty import entropy, reference_distance, sign_agreement, spread
from .training_reference import read_reference

_log = logging.getLogger("wsi_pipeline")
_UNITS: dict[str, Unit] = {"distance": "distance"}  # the others are fractions; a spread has its method's unit
_PREDICTING = {"classification", "multilabel"}


@dataclass(frozen=True)
class Basis:
    """What the derived maps of one slide by one model rest on."""

    bag: Path
    members: tuple[Path, ...]
    label: str
    maps: tuple[Path, ...]  # of the methods; the first is the one whose spread is looked at
    weights: Mapping[str, float]  # of the methods in the consensus
    references: tuple[Path, ...]  # of the members; empty where their training slides are not at hand


def derived_jobs(
    project: Project,
    slides: Sequence[SlideRow],
    methods: Mapping[str, Sequence[str]],
    held_out: Mapping[tuple[str, str], Sequence[Path]],
    references: Mapping[Path, Path],
) -> list[Job]:
    """A job for each model, summary map and slide; for a map that cannot be made, one warning says why.

    ``methods``: those that explain each model. ``held_out``: the members that judge, by model and patient.
    ``references``: what members have seen, as far as it is at hand.
    """
    section, folder = project.config.explain, project.folder
    jobs: list[Job] = []
    missing: Counter[str] = Counter()
    for label, names in methods.items():
        ordered, weights = _ordered(project, label, names)
        for slide in slides:
            members = tuple(held_out[label, slide.patient_id])
            paths = [folder.explanation(label, name, slide.slide_id) for name in ordered]
            basis = Basis(
                bag=folder.bag(slide.slide_id),
                members=members,
                label=label,
                maps=tuple(path for path in paths if path.exists()),
                weights=weights,
                references=tuple(references[m] for m in members) if set(members) <= references.keys() else (),
            )
            for name in section.summary_maps:
                output = folder.explanation(label, name, slide.slide_id)
                if why := _lack(name, basis):
                    missing[f"{label} has no map {name!r}, {why}"] += 1
                    discard(output)  # what an earlier call could make
                else:
                    jobs.append(_job(name, basis, section, output))
    for line, count in missing.items():
        _log.warning("%s (%d slides)", line, count)
    return jobs


def _ordered(project: Project, label: str, names: Sequence[str]) -> tuple[list[str], dict[str, float]]:
    """The methods, in front the one that was picked, or else the signed ones; and their weights in the consensus.

    No weights where not all were measured.
    """
    choice = read_selection(project.folder.selection(label)) if AUTO in project.config.explain.methods else None
    if choice is None:
        return sorted(names, key=lambda name: not explainers.build(name).signed), {}
    ordered = sorted(names, key=lambda name: name != choice.method)
    measured = {name: choice.aupc[name] for name in names if name in choice.aupc}
    return ordered, faithful_weights(measured, choice.random) if len(measured) == len(names) else {}


def _lack(name: str, basis: Basis) -> str:
    """Why the map ``name`` cannot be made, as the end of a message; empty where it can."""
    if not basis.maps:
        return "as no method explains it"
    if name in ("consensus", "agreement") and len(basis.maps) < 2:
        return "which needs the maps of two methods"
    if name in ("spread", "sign_agreement") and len(basis.members) < 2:
        return "which needs two members that judge it; train more seeds"
    if name == "entropy" and card(basis.members[0]).task not in _PREDICTING:
        return f"as {card(basis.members[0]).task} has no probability"
    if name == "distance" and not basis.references:
        return "as the slides it was trained on are not in this run folder"
    return ""


def _job(name: str, basis: Basis, section: ExplainConfig, output: Path) -> Job:
    """The job that makes one map of one slide by one model."""
    facts: dict[str, Any] = {
        "map": name,
        "maps": [read_key(path) for path in basis.maps],
        "members": [card(member).weights_sha256 for member in basis.members],
        "weights": basis.weights if name == "consensus" else {},
        "references": [read_key(path) for path in basis.references] if name == "distance" else [],
        "upstream": read_key(basis.bag),
    }
    provenance = Provenance.of(content_key(stage="explain", **facts), "explain", **facts)
    return Job(basis.bag.stem, output, provenance, write_derived, (name, basis, section))


def write_derived(name: str, basis: Basis, section: ExplainConfig, *, output: Path, provenance: Provenance) -> int:
    """Write the map, one entry for each class that the methods explain; returns the number of patches."""
    by_method = [read_explanations(path) for path in basis.maps]
    made = []
    for of_class in zip(*by_method, strict=True):
        first = of_class[0]
        scores, signed = _scores(name, basis, of_class, section)
        unit = first.unit if name == "spread" else _UNITS.get(name, "fraction")
        made.append(Explanation(first.grid, scores.astype(np.float32), name, basis.label, first.target, unit, signed))
    write_explanations(output, made, provenance)
    return len(made[0].grid)


def _scores(name: str, basis: Basis, maps: Sequence[Explanation], section: ExplainConfig) -> tuple[np.ndarray, bool]:
    """Scores (N,) of one derived map of one class, and whether they are signed."""
    if name in ("consensus", "agreement"):
        values, signed = [e.scores for e in maps], [e.signed for e in maps]
        if name == "agreement":
            return agreement(values, signed), False
        weights = [basis.weights[e.method] for e in maps] if basis.weights else None
        return consensus(values, signed, weights), all(signed)
    with cpu_threads(1):
        bag = read_bag(basis.bag)
        if name == "distance":
            features = torch.from_numpy(bag.features).float()
            found = [reference_distance(features, read_reference(path)) for path in basis.references]
            return np.mean(found, axis=0), False
        members = load_explained(basis.members, str(pick_device(section.device)))
        target = members[0].classes.index(maps[0].target)
        if name == "entropy":
            return entropy(_probabilities(members, bag, target)), False
        scores = _by_member(members, bag, maps[0].method, section, target)
        return (spread if name == "spread" else sign_agreement)(scores), False


def _probabilities(members: Sequence[ExplainedModel], bag: FeatureBag, target: int) -> Float64:
    """(M, N, C) of each patch alone; of multilabel, of the target and of its absence."""
    found = []
    for member in members:
        features, xy = bag_tensors(bag, next(member.module.parameters()).device)
        with frozen(member.module), torch.no_grad():
            logits = logits_alone(member.module, features.float(), xy).double().cpu().numpy()
        found.append(outcome(member.task, logits))
    each = np.stack(found)
    if members[0].task == "multilabel":
        return np.stack([1 - each[..., target], each[..., target]], axis=-1)
    return each


def _by_member(
    members: Sequence[ExplainedModel], bag: FeatureBag, method: str, section: ExplainConfig, target: int
) -> Float64:
    """(M, N) scores of one method by each member."""
    explainer = explainers.build(method, **section.options.get(method, {}))
    scores = []
    for member in members:
        features, xy = bag_tensors(bag, next(member.module.parameters()).device)
        scores.append(explainer(member, features.float(), xy, target).numpy().astype(np.float64))
    return np.stack(scores)
