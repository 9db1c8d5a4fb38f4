"""Select per model the method with the lowest patch-flipping AUPC on validation slides (``auto`` in the config)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..aggregate.inference import bag_tensors, cpu_threads
from ..artifacts import Provenance, content_key, read_key, write_text_with_provenance
from ..csvtable import read_csv
from ..device import pick_device
from ..engine import Job
from ..errors import ArtifactError, ConfigError
from ..outcome import outcome
from ..predict.ensembles import card
from ..project import AUTO, MethodSelection, Project
from ..store import read_bag
from .explained_model import ExplainedModel, load_explained
from .measures.patch_flipping import curve, descending, mean_scores, perturbable
from .measures.random_baseline import RANDOM, RandomBaseline
from .methods import Explainer, explainers

CASES = 12  # validation slides per model, each explained by the member of its own fold
POINTS = 21  # of each flipping curve: steps of 5 %


class Case(NamedTuple):
    """One validation slide, and the members of the ensemble that were not trained on it."""

    models: Sequence[ExplainedModel]
    features: Tensor  # (N, D), in the models' precision and on their device
    xy: Tensor  # (N, 2)


def validation_scores(
    cases: Iterable[Case],
    methods: Mapping[str, Explainer],
    *,
    points: int = POINTS,
) -> dict[str, float]:
    """Patch-flipping AUPC of each method for the predicted class, with patches dropped (see ``patch_flipping``).

    Parameters
    ----------
    cases : iterable of Case
        Consumed one at a time.
    methods : mapping of str to Explainer
        Each fits each model.
    points : int
        Of each curve.

    Returns
    -------
    dict of str to float
        Mean over the slides; NaN without slides. Lower is more faithful.
    """
    found: dict[str, list[float]] = {name: [] for name in methods}
    for members, features, xy in cases:
        target = likeliest(members, features, xy)
        perturbation = perturbable(members, features, xy)
        for name, explainer in methods.items():
            order = descending(mean_scores(explainer, members, features, xy, target))
            found[name].append(float(curve(perturbation, order, target, points=points).outcome.mean()))
    return {name: float(np.mean(areas)) if areas else math.nan for name, areas in found.items()}


def choose(aupc: Mapping[str, float]) -> str:
    """The method with the lowest AUPC, of ties the first by name. Raises ``ValueError`` if all are NaN."""
    measured = {name: area for name, area in aupc.items() if not math.isnan(area)}
    if not measured:
        raise ValueError(f"no method was measured on a validation slide: {', '.join(sorted(aupc)) or 'none given'}")
    return min(measured, key=lambda name: (measured[name], name))


def likeliest(members: Sequence[ExplainedModel], features: Tensor, xy: Tensor) -> int:
    """The class with the highest mean output over the members, without a threshold."""
    logits = np.stack([member.logits(features, xy).cpu().double().numpy() for member in members])  # (M, C)
    return int(outcome(members[0].task, logits).mean(axis=0).argmax())


def selection_job(project: Project, label: str, members: Sequence[Path], candidates: Sequence[str]) -> Job:
    """Job that selects a method for one model.

    Parameters
    ----------
    project : Project
    label : str
        Of the model.
    members : sequence of Path
        Folders of the model's folds.
    candidates : sequence of str
        Methods that fit the model.

    Raises
    ------
    ConfigError
        Where there is no candidate, or the model was not trained in this run.
    ArtifactError
        Where the model has no validation slide.
    """
    section = project.config.explain
    if project.config.predict.model is not None:
        raise ConfigError(f"explain.methods: {AUTO} needs the folds of this run; with predict.model name the methods")
    if not candidates:
        raise ConfigError(f"explain.candidates: none fits {label}; methods that fit: `wsi list explainers`")
    options = {name: section.options.get(name, {}) for name in sorted(candidates)}
    cases = validation_cases(project, label, members)
    identity = [[read_key(bag), card(member).weights_sha256, card(member).options] for bag, member in cases]
    key = content_key(stage="explain", part=AUTO, options=options, cases=identity, points=POINTS)
    output = project.folder.selection(label)
    provenance = Provenance.of(key, "explain")
    return Job(f"{AUTO} {label}", output, provenance, select_method, (cases, options, section.device), slide=False)


def validation_cases(project: Project, label: str, members: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(bag, member) of at most ``CASES`` validation slides, balanced over folds and labels."""
    path = project.folder.train / "predictions.csv"
    header, rows = read_csv(path)
    groups: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for row in (dict(zip(header, cells, strict=True)) for cells in rows):
        if row["model"] == label and row["part"] == "val":
            member = project.folder.fold(label, int(row["seed"]), int(row["fold"]))
            groups[member, row.get("label", "")].extend(row["slide_id"].split(";"))
    turns = sorted(
        (turn, str(member), of_label, slide)
        for (member, of_label), slides in groups.items()
        for turn, slide in enumerate(sorted(slides))
        if member in members and project.folder.bag(slide).exists()
    )
    if not turns:
        raise ArtifactError(f"{path} has no validation slide of {label}, so {AUTO} cannot select; name explain.methods")
    return [(project.folder.bag(slide), Path(member)) for _, member, _, slide in turns[:CASES]]


def select_method(
    cases: Sequence[tuple[Path, Path]],
    options: Mapping[str, Mapping[str, Any]],
    device: str,
    *,
    output: Path,
    provenance: Provenance,
) -> int:
    """Write the selection as JSON; returns the number of validation slides."""
    methods: dict[str, Explainer] = {name: explainers.build(name, **own) for name, own in options.items()}
    methods[RANDOM] = RandomBaseline()
    with cpu_threads(1):
        aupc = validation_scores(_cases(cases, str(pick_device(device))), methods, points=POINTS)
    of_random = aupc.pop(RANDOM)
    found = MethodSelection(choose(aupc), aupc, of_random, len(cases))
    write_text_with_provenance(output, json.dumps(asdict(found), indent=1, allow_nan=False) + "\n", provenance)
    return len(cases)


def _cases(cases: Sequence[tuple[Path, Path]], device: str) -> Iterator[Case]:
    for path, member in cases:
        features, xy = bag_tensors(read_bag(path), device)
        yield Case(load_explained([member], device), features.float(), xy)
