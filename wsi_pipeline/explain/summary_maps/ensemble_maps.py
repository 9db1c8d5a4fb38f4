"""Summary maps: consensus and agreement of methods, spread over members, entropy, distance to the training data.

``consensus``, ``agreement``: of the methods' maps. ``spread``, ``sign_agreement``: over the members, of the selected
method, else of the first signed one. ``entropy``: of each single patch's probabilities. ``distance``: to the training
patches.
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
from ..single_patch import single_patch_logits
from .map_arithmetic import agreement, consensus, faithful_weights
from .map_uncertainty import entropy, reference_distance, sign_agreement, spread
from .training_reference import read_reference

_log = logging.getLogger("wsi_pipeline")
_UNITS: dict[str, Unit] = {"distance": "distance"}  # the others are fractions; a spread has the method's unit
_PREDICTING = {"classification", "multilabel"}


@dataclass(frozen=True)
class Basis:
    """Inputs of the summary maps of one slide and one model."""

    bag: Path
    members: tuple[Path, ...]
    label: str
    maps: tuple[Path, ...]  # of the methods; spread and sign agreement are those of the first
    weights: Mapping[str, float]  # of the methods in the consensus
    references: tuple[Path, ...]  # of the members; empty where their training slides are not available


def summary_map_jobs(
    project: Project,
    slides: Sequence[SlideRow],
    methods: Mapping[str, Sequence[str]],
    held_out: Mapping[tuple[str, str], Sequence[Path]],
    references: Mapping[Path, Path],
) -> list[Job]:
    """Jobs of all summary maps; for maps that cannot be made, a single warning states the reason.

    Parameters
    ----------
    project : Project
    slides : sequence of SlideRow
    methods : mapping of str to sequence of str
        Label of the model -> methods that explain it.
    held_out : mapping of (str, str) to sequence of Path
        (label, patient) -> members that were not trained on the patient.
    references : mapping of Path to Path
        Member -> its training reference, where available.
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
                    discard(output)  # of an earlier run
                else:
                    jobs.append(_job(name, basis, section, output))
    for line, count in missing.items():
        _log.warning("%s (%d slides)", line, count)
    return jobs


def _ordered(project: Project, label: str, names: Sequence[str]) -> tuple[list[str], dict[str, float]]:
    """The methods, the selected one first, or else the signed ones; and their weights in the consensus.

    Weights are empty unless all methods were measured.
    """
    selection = read_selection(project.folder.selection(label)) if AUTO in project.config.explain.methods else None
    if selection is None:
        return sorted(names, key=lambda name: not explainers.build(name).signed), {}
    ordered = sorted(names, key=lambda name: name != selection.method)
    measured = {name: selection.aupc[name] for name in names if name in selection.aupc}
    return ordered, faithful_weights(measured, selection.random) if len(measured) == len(names) else {}


def _lack(name: str, basis: Basis) -> str:
    """Why the map ``name`` cannot be made, as the end of a message; empty if it can."""
    if not basis.maps:
        return "as no method explains it"
    if name in ("consensus", "agreement") and len(basis.maps) < 2:
        return "which needs the maps of two methods"
    if name in ("spread", "sign_agreement") and len(basis.members) < 2:
        return "which needs two members that were not trained on the patient; train more seeds"
    if name == "entropy" and card(basis.members[0]).task not in _PREDICTING:
        return f"as {card(basis.members[0]).task} has no probability"
    if name == "distance" and not basis.references:
        return "as the slides it was trained on are not in this run folder"
    return ""


def _job(name: str, basis: Basis, section: ExplainConfig, output: Path) -> Job:
    """Job for one map of one slide and one model."""
    facts: dict[str, Any] = {
        "map": name,
        "maps": [read_key(path) for path in basis.maps],
        "members": [card(member).weights_sha256 for member in basis.members],
        "weights": basis.weights if name == "consensus" else {},
        "references": [read_key(path) for path in basis.references] if name == "distance" else [],
        "upstream": read_key(basis.bag),
    }
    provenance = Provenance.of(content_key(stage="explain", **facts), "explain", **facts)
    return Job(basis.bag.stem, output, provenance, write_summary_map, (name, basis, section))


def write_summary_map(name: str, basis: Basis, section: ExplainConfig, *, output: Path, provenance: Provenance) -> int:
    """Write the map, one entry per explained class; returns the number of patches."""
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
    """Scores (N,) of one summary map of one class, and whether they are signed."""
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
    """Class probabilities of each single patch, (M, N, C); for multilabel, C = 2: the label's absence and presence."""
    found = []
    for member in members:
        features, xy = bag_tensors(bag, next(member.module.parameters()).device)
        with frozen(member.module), torch.no_grad():
            logits = single_patch_logits(member.module, features.float(), xy).double().cpu().numpy()
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
