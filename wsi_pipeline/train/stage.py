"""``wsi train``: every configured model, on every fold of every seed, over the labelled slides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..artifacts import Provenance, content_key, discard, file_digest, write_text_with_provenance
from ..config import train_of
from ..csvtable import csv_text, read_csv
from ..engine import Engine, Job
from ..project import Project
from ..types import SlideRow
from .fold_job import STATE, FoldJob
from .labels import outputs
from .splits import labelled, make_splits

Fold = tuple[str, int, int]  # model label, seed, fold


def run(project: Project, engine: Engine) -> None:
    """Train what is not current; then ``train/predictions.csv`` joins the folds.

    Each fold leaves its log, predictions and model in ``RunFolder.fold(label, seed, fold)``. Folders of folds that
    the config no longer has stay where they are and are not used. Raises ``ConfigError`` where the slides cannot be
    split.
    """
    config = project.config.train
    slides = labelled(engine.ready("train", project.slides, project.folder.bag, "embed"), config.task)
    jobs = _fold_jobs(project, slides, outputs(slides, config))
    for job in jobs.values():
        if job.current():
            (job.output.parent / STATE).unlink(missing_ok=True)  # killed between the card and this
    engine.run("train", list(jobs.values()), device=config.device)
    output = project.folder.train / "predictions.csv"
    if not all(job.current() for job in jobs.values()):
        discard(output)  # a fold failed and is listed; a table of the others would look whole
        return
    parts = {fold: job.output.parent / "predictions.csv" for fold, job in jobs.items()}
    key = content_key(stage="train", part="cohort", folds=[(*fold, job.key) for fold, job in jobs.items()])
    engine.run("train", [Job("cohort", output, key, join_folds, (parts, output, key), slide=False)])


def _weights_stand(card: Path) -> bool:
    """Whether the weights beside a model.json are those it was written for."""
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["weights_sha256"]
        return bool(file_digest(card.parent / "model.safetensors") == expected)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def train_fold(task: FoldJob, folder: Path, key: str) -> int:
    """One fold's job; loads torch and Lightning where they are needed, and no earlier."""
    from .train_fold import train_fold as train

    return train(task, folder, key)


def join_folds(parts: Mapping[Fold, Path], output: Path, key: str) -> int:
    """Write the folds' predictions as one table with the columns model, seed, fold before theirs. Returns its rows."""
    header: list[str] = []
    rows: list[list[object]] = []
    for fold, path in parts.items():
        columns, lines = read_csv(path)
        header = ["model", "seed", "fold", *columns]
        rows.extend([*fold, *line] for line in lines)
    write_text_with_provenance(output, csv_text(header, rows), Provenance.of(key, "train"))
    return len(rows)


def _fold_jobs(project: Project, slides: Sequence[SlideRow], classes: tuple[str, ...]) -> dict[Fold, Job]:
    config = project.config.train
    bags = {slide.slide_id: project.folder.bag(slide.slide_id) for slide in slides}
    splits = {seed: make_splits(slides, config, seed) for seed in config.seeds}
    options = project.config.embed.encoder_options
    jobs: dict[Fold, Job] = {}
    for choice in project.config.aggregate.models:
        for seed in splits:
            for split in splits[seed]:
                task = FoldJob(choice, train_of(config, choice), options, classes, seed, split, tuple(slides), bags)
                folder, key = project.folder.fold(choice.label, seed, split.fold), task.key()
                name = f"{choice.label}_seed{seed}_fold{split.fold}"
                jobs[choice.label, seed, split.fold] = Job(
                    name,
                    folder / "model.json",
                    key,
                    train_fold,
                    (task, folder, key),
                    slide=False,
                    whole=_weights_stand,
                )
    return jobs
