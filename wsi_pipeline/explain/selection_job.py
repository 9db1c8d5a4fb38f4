"""``auto`` in ``explain.methods``: each model's method is the one that its validation slides bear out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..aggregate.inference import bag_tensors, cpu_threads
from ..artifacts import Provenance, content_key, read_key, write_text_with_provenance
from ..csvtable import read_csv
from ..device import pick_device
from ..engine import Job
from ..errors import ArtifactError, ConfigError
from ..predict.ensembles import card
from ..project import AUTO, MethodSelection, Project
from ..store import read_bag
from ..types import Unit
from .explained_model import Attribution, ExplainedModel, load_explained
from .measures.random_baseline import RANDOM, chance
from .method_selection import Case, choose, validation_scores
from .methods import Explainer, explainers

CASES = 12  # slides that decide; a fold's validation slides are judged by its own model
POINTS = 21  # of each flipping curve: steps of 5 %


class Chance:
    """Scores that know nothing, the same for the same bag: what a method has to beat."""

    unit: Unit = "attribution"
    signed = False
    class_specific = False

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:  # noqa: ARG002
        scores = chance(len(features), len(features)).astype("float32")
        return Attribution(torch.from_numpy(scores))


def selection_job(project: Project, label: str, members: Sequence[Path], candidates: Sequence[str]) -> Job:
    """The job that picks a method for one model. Raises ``ConfigError`` where there is nothing to pick by."""
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
    """(bag, member) of the slides that decide: as many of each fold and label as can be, at most ``CASES``."""
    path = project.folder.train / "predictions.csv"
    header, rows = read_csv(path)
    groups: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for row in (dict(zip(header, cells, strict=True)) for cells in rows):
        if row["model"] == label and row["part"] == "val":
            member = project.folder.fold(label, int(row["seed"]), int(row["fold"]))
            groups[member, row.get("label", "")].extend(row["slide_id"].split(";"))
    turns = sorted(
        (turn, str(member), named, slide)
        for (member, named), slides in groups.items()
        for turn, slide in enumerate(sorted(slides))
        if member in members and project.folder.bag(slide).exists()
    )
    if not turns:
        raise ArtifactError(f"{path} has no validation slide of {label}, so {AUTO} cannot pick; name explain.methods")
    return [(project.folder.bag(slide), Path(member)) for _, member, _, slide in turns[:CASES]]


def select_method(
    cases: Sequence[tuple[Path, Path]],
    options: Mapping[str, Mapping[str, Any]],
    device: str,
    *,
    output: Path,
    provenance: Provenance,
) -> int:
    """Write the choice as JSON; returns the number of slides that decided."""
    methods: dict[str, Explainer] = {name: explainers.build(name, **given) for name, given in options.items()}
    methods[RANDOM] = Chance()
    with cpu_threads(1):
        aupc = validation_scores(_cases(cases, str(pick_device(device))), methods, points=POINTS)
    of_chance = aupc.pop(RANDOM)
    found = MethodSelection(choose(aupc), aupc, of_chance, len(cases))
    write_text_with_provenance(output, json.dumps(asdict(found), indent=1, allow_nan=False) + "\n", provenance)
    return len(cases)


def _cases(cases: Sequence[tuple[Path, Path]], device: str) -> Iterator[Case]:
    for path, member in cases:
        features, xy = bag_tensors(read_bag(path), device)
        yield Case(load_explained([member], device), features.float(), xy)
