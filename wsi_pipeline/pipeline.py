"""The order of the stages, and what holds between them: failures.csv, names checked before the first slide."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Sequence
from pathlib import Path

from .artifacts import discard, write_text
from .config import Config, train_of
from .engine import Engine, Failure, Observer
from .errors import ArtifactError, ConfigError
from .project import AUTO, Project

STAGES = ("tile", "embed", "train", "predict", "explain", "heatmap", "evaluate", "view")
APPLY = ("tile", "embed", "predict", "explain", "heatmap", "view")  # what a lab that only applies a model needs
EXPLANATIONS = "explanations"  # of the room evaluate, and no part of a run: many forward passes a slide
_WHOLE_COHORT = {"train", "evaluate", EXPLANATIONS}
_FIELDS = ("slide_id", "stage", "error", "message")


def stages_of(config: Config) -> tuple[str, ...]:
    """What ``wsi run`` does: a given model is applied, not trained."""
    return tuple(s for s in STAGES if s != "train" or config.predict.model is None)


def run_stages(project: Project, stages: Sequence[str], observer: Observer | None = None) -> list[Failure]:
    """Run the stages in order; failures.csv is brought up to date after each.

    Returns every failure that stands in failures.csv. Raises ``WsiError`` where the user must fix something.
    """
    partial = len(project.slides) < len(project.cohort)
    if partial and set(stages) <= _WHOLE_COHORT:
        raise ConfigError(f"{stages[0]} works on the whole cohort; leave --only out")
    check_names(project.config, stages)
    if "train" in stages and not partial:
        check_splits(project)
    earlier = [f for f in read_failures(project.folder.failures) if _stands(project, f, stages[0])]
    with Engine(project.config.engine, project.config.out, observer, earlier) as engine:
        for stage in stages:
            if partial and stage in _WHOLE_COHORT:
                continue
            try:
                room = "evaluate.explanations" if stage == EXPLANATIONS else f"{stage}.stage"
                importlib.import_module(f"wsi_pipeline.{room}").run(project, engine)
            finally:
                write_failures(project.folder.failures, engine.failures)
            failed = {f.slide_id for f in engine.failures}
            if all(s.slide_id in failed for s in project.slides):
                _drop_summaries(project, stages)
                break  # nothing is left to work on; failures.csv says why
            if failed - {s.slide_id for s in project.cohort}:
                break  # a fold, or the cohort's own work: what follows rests on it
    return engine.failures


def check_names(config: Config, stages: Sequence[str]) -> None:
    """Every plug-in that the stages will ask for exists. Raises ``ConfigError`` before any work is done."""
    if "tile" in stages or "embed" in stages:
        from .read import readers
        from .tile import detectors

        if config.read.reader != "auto":
            readers.entry(config.read.reader)
        detectors.check(config.tile.detector, config.tile.detector_options)
    if "embed" in stages:
        from .embed import encoders

        encoders.check(config.embed.encoder, config.embed.encoder_options)
    if "train" in stages:
        from .aggregate import models

        for choice in config.aggregate.models:
            models.check(choice.name, choice.options)
            train_of(config.train, choice)
    if "explain" in stages or EXPLANATIONS in stages:
        from .explain.methods import explainers

        named = {*config.explain.methods} - {AUTO}
        for method in sorted(named | {*(config.explain.candidates if AUTO in config.explain.methods else ())}):
            explainers.check(method, config.explain.options.get(method, {}))
    if "evaluate" in stages and config.evaluate.froc not in (None, *config.explain.methods):
        raise ConfigError(f"evaluate.froc: {config.evaluate.froc!r} is not among explain.methods; add it there")


def check_splits(project: Project) -> None:
    """The manifest's labels and patients can be split. Raises ``ConfigError`` before a slide is read for nothing."""
    from .train.labels import outputs, units
    from .train.splits import labelled, make_splits

    config = project.config.train
    rows = labelled(project.cohort, config.task)
    outputs(rows, config)
    units(rows, config.bag)
    for seed in config.seeds:
        make_splits(rows, config, seed)


def read_failures(path: Path) -> list[Failure]:
    """The lines of failures.csv; none where there is no such file. Raises ``ArtifactError`` where it is damaged."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Failure(*(line[name] for name in _FIELDS)) for line in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"{path} is not a list of failures; delete it and run again") from error


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """failures.csv: slide_id, stage, error, message."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows((f.slide_id, f.stage, f.error, f.message) for f in failures)
    write_text(path, text.getvalue())


def _drop_summaries(project: Project, stages: Sequence[str]) -> None:
    """No number of an earlier run stands for slides that have all failed now."""
    if len(project.slides) == len(project.cohort):
        for stage, path in (
            ("predict", project.folder.predictions),
            ("predict", project.folder.patients),
            ("evaluate", project.folder.evaluate / "report.json"),
        ):
            if stage in stages:
                discard(path)


def _stands(project: Project, failure: Failure, first: str) -> bool:
    """Whether a line of an earlier call still holds: its slide is left out now, or it failed before ``first``.

    What follows ``first`` rests on work that is done again, and will say so again. That an explanation could not be
    measured keeps no later stage from its slide, so such a line never stands.
    """
    if failure.slide_id in {s.slide_id for s in project.cohort} - {s.slide_id for s in project.slides}:
        return True
    return failure.stage in STAGES[: STAGES.index("evaluate" if first == EXPLANATIONS else first)]
