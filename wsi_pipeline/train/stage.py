"""``wsi train``: every configured model, on every fold of every seed, over the labelled slides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..artifacts import Provenance, content_key, discard, file_digest, write_text_with_provenance
from ..config import train_of
from ..csvtable import csv_text, read_csv
from ..engine import Job
from ..project import Project
from ..types import SlideRow
from .fold_job import STATE, FoldJob
from .labels import outputs
from .splits import labelled, make_splits

Fold = tuple[str, int, int]  # model label, seed, fold


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """One job a fold; then ``train/predictions.csv`` joins the folds.

    Each fold writes its log, predictions and model into ``RunFolder.fold(label, seed, fold)``. Folders of folds that
    are no longer in the config are kept and not used. Raises ``ConfigError`` where the slides cannot be split.
    """
    config = project.config.train
    with_label = labelled(slides, config.task)
    folds = _fold_jobs(project, with_label, outputs(with_label, config))
    for job in folds.values():
        if job.current():
            (job.output.parent / STATE).unlink(missing_ok=True)  # the run was killed between the card and this
    yield list(folds.values())
    output = project.folder.train / "predictions.csv"
    if not all(job.current() for job in folds.values()):
        discard(output)  # a fold failed and is listed; a table of the others would look complete
        return
    parts = {fold: job.output.parent / "predictions.csv" for fold, job in folds.items()}
    key = content_key(stage="train", part="cohort", folds=[(*fold, job.key) for fold, job in folds.items()])
    provenance = Provenance.of(key, "train")
    yield [Job("cohort", output, provenance, join_folds, (parts,), slide=False, on_device=False)]


def _weights_match(card: Path) -> bool:
    """Whether the weights beside a model.json are those that it was written for."""
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["weights_sha256"]
        return bool(file_digest(card.parent / "model.safetensors") == expected)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def train_fold(task: FoldJob, *, output: Path, provenance: Provenance) -> int:
    """One fold's job; loads torch and Lightning only when it runs."""
    from .train_fold import train_fold as train

    return train(task, output.parent, provenance.key)


def join_folds(parts: Mapping[Fold, Path], *, output: Path, provenance: Provenance) -> int:
    """Write the folds' predictions as one table, with the columns model, seed, fold in front. Returns its row count."""
    header: list[str] = []
    rows: list[list[object]] = []
    for fold, path in parts.items():
        columns, lines = read_csv(path)
        header = ["model", "seed", "fold", *columns]
        rows.extend([*fold, *line] for line in lines)
    write_text_with_provenance(output, csv_text(header, rows), provenance)
    return len(rows)


def _fold_jobs(project: Project, slides: Sequence[SlideRow], classes: tuple[str, ...]) -> dict[Fold, Job]:
    config = project.config.train
    bags = {slide.slide_id: project.folder.bag(slide.slide_id) for slide in slides}
    splits = {seed: make_splits(slides, config, seed) for seed in config.seeds}
    options = project.config.embed.encoder_options
    made: dict[Fold, Job] = {}
    for choice in project.config.aggregate.models:
        for seed in splits:
            for split in splits[seed]:
                task = FoldJob(choice, train_of(config, choice), options, classes, seed, split, tuple(slides), bags)
                card = project.folder.fold(choice.label, seed, split.fold) / "model.json"
                name = f"{choice.label}_seed{seed}_fold{split.fold}"
                provenance = Provenance.of(task.key(), "train")
                made[choice.label, seed, split.fold] = Job(
                    name, card, provenance, train_fold, (task,), slide=False, complete=_weights_match
                )
    return made
