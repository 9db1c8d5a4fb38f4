"""The table of stages, and what holds between them: failures.csv, names checked before the first slide.

A stage's module is imported when the stage runs, so that a stage without a network starts without torch.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .artifacts import discard, write_text
from .config import Config, train_of
from .csvtable import csv_text
from .engine import Engine, Failure, Job, Observer
from .errors import ArtifactError, ConfigError
from .project import AUTO, Project
from .types import SlideRow

_FIELDS = ("slide_id", "stage", "error", "message")

Slides = Sequence[SlideRow]
Failures = Sequence[Failure]
Batches = Iterator[list[Job]]


@dataclass(frozen=True)
class Need:
    """The file that a slide must have before a stage can work on it; a slide without it is listed as failed."""

    stage: str  # that makes the file
    path: Callable[[Project], Callable[[str], Path]]  # of a project: slide_id -> the file


@dataclass(frozen=True)
class Stage:
    """One stage: a folder of the run folder, a command of ``wsi`` and, most of them, a section of the config.

    ``jobs(project, slides, failures)`` yields one batch of jobs after the other; the next batch is asked for when
    all jobs of the one before have ended. ``slides``: those of this call that have what the stage needs and have not
    failed. ``failures``: all of this call; it grows while the batches run.
    """

    name: str
    needs: Need | None
    scope: Literal["slide", "cohort"]  # cohort: works on the whole manifest only, never on a part of it
    device: Callable[[Config], str]  # what the config gives: auto, cpu, cuda, …
    jobs: Callable[[Project, Slides, Failures], Batches]


def run_stages(project: Project, stages: Sequence[str], observer: Observer | None = None) -> list[Failure]:
    """Run stages in order; failures.csv is brought up to date after each.

    Parameters
    ----------
    project : Project
        The config, the whole cohort, and the slides of it that are processed.
    stages : sequence of str
        Names of ``TABLE``. Stages of the cohort are skipped where ``project`` has a part of it only.
    observer : Observer, optional
        Receives progress.

    Returns
    -------
    list of Failure
        Every line of failures.csv.

    Raises
    ------
    WsiError
        Where the user must fix something; what was finished before is kept.
    """
    partial = len(project.slides) < len(project.cohort)
    if partial and all(TABLE[name].scope == "cohort" for name in stages):
        raise ConfigError(f"{stages[0]} works on the whole cohort; leave --only out")
    check_names(project.config, stages)
    if "train" in stages and not partial:
        check_splits(project)
    earlier = [f for f in read_failures(project.folder.failures) if _still_holds(project, f, stages[0])]
    with Engine(project.config.engine, project.config.out, observer, earlier) as engine:
        for stage in stages:
            if partial and TABLE[stage].scope == "cohort":
                continue
            try:
                run_stage(stage, project, engine)
            finally:
                write_failures(project.folder.failures, engine.failures)
            failed = {f.slide_id for f in engine.failures}
            if all(s.slide_id in failed for s in project.slides):
                _drop_summaries(project, stages)
                break  # nothing is left to work on; failures.csv gives the reasons
            if failed - {s.slide_id for s in project.cohort}:
                break  # a fold or the cohort's own job failed: the stages that follow depend on it
    return engine.failures


def run_stage(name: str, project: Project, engine: Engine) -> None:
    """Run one stage's jobs, batch by batch. Failures of single slides are in ``engine.failures``."""
    stage = TABLE[name]
    if stage.needs is None:
        slides = engine.unfailed(project.slides)
    else:
        slides = engine.ready(stage.name, project.slides, stage.needs.path(project), stage.needs.stage)
    for jobs in stage.jobs(project, slides, engine.failures):
        engine.run(stage.name, jobs, stage.device(project.config))


def stages_of(config: Config) -> tuple[str, ...]:
    """The stages of ``wsi run``: all, or all except train where the config gives a model (``predict.model``)."""
    return tuple(s for s in STAGES if s != "train" or config.predict.model is None)


def check_names(config: Config, stages: Sequence[str]) -> None:
    """Check that every plug-in that the stages will use exists. Raises ``ConfigError`` before any work is done."""
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
    """Check that the manifest's labels and patients can be split. Raises ``ConfigError`` before a slide is read."""
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
    write_text(path, csv_text(_FIELDS, [(f.slide_id, f.stage, f.error, f.message) for f in failures]))


def _drop_summaries(project: Project, stages: Sequence[str]) -> None:
    """Remove the numbers of an earlier run where all slides have failed now."""
    if len(project.slides) == len(project.cohort):
        for stage, path in (
            ("predict", project.folder.predictions),
            ("predict", project.folder.patients),
            ("evaluate", project.folder.evaluate / "report.json"),
        ):
            if stage in stages:
                discard(path)


def _still_holds(project: Project, failure: Failure, first: str) -> bool:
    """Whether a line of an earlier call still holds: its slide is left out now, or it failed before ``first``.

    What follows ``first`` depends on work that is done again, and fails again if it must. An explanation that could
    not be measured keeps no later stage from its slide, so such a line never holds.
    """
    if failure.slide_id in {s.slide_id for s in project.cohort} - {s.slide_id for s in project.slides}:
        return True
    return failure.stage in STAGES[: STAGES.index("evaluate" if first == EXPLANATIONS else first)]


# --- the table -----------------------------------------------------------------------------------------------


def _tile(project: Project, slides: Slides, _failures: Failures) -> Batches:
    from .tile.stage import jobs

    return jobs(project, slides)


def _embed(project: Project, slides: Slides, _failures: Failures) -> Batches:
    from .embed.stage import jobs

    return jobs(project, slides)


def _train(project: Project, slides: Slides, _failures: Failures) -> Batches:
    from .train.stage import jobs

    return jobs(project, slides)


def _predict(project: Project, slides: Slides, failures: Failures) -> Batches:
    from .predict.stage import jobs

    return jobs(project, slides, failures)


def _explain(project: Project, slides: Slides, _failures: Failures) -> Batches:
    from .explain.stage import jobs

    return jobs(project, slides)


def _heatmap(project: Project, slides: Slides, _failures: Failures) -> Batches:
    from .heatmap.stage import jobs

    return jobs(project, slides)


def _evaluate(project: Project, _slides: Slides, _failures: Failures) -> Batches:
    from .evaluate.stage import jobs

    return jobs(project)


def _explanations(project: Project, slides: Slides, _failures: Failures) -> Batches:
    from .evaluate.explanations import jobs

    return jobs(project, slides)


def _view(project: Project, slides: Slides, failures: Failures) -> Batches:
    from .view.stage import jobs

    return jobs(project, slides, failures)


def _first_explanation(project: Project) -> Callable[[str], Path]:
    from .heatmap.stage import first_explanation

    return first_explanation(project)


def _no_device(_config: Config) -> str:
    return "cpu"


_GRID = Need("tile", lambda project: project.folder.grid)
_BAG = Need("embed", lambda project: project.folder.bag)
_MAP = Need("explain", _first_explanation)

EXPLANATIONS = "explanations"  # ``wsi evaluate explanations``: not part of a run, as it takes many forward passes

TABLE = {
    stage.name: stage
    for stage in (
        Stage("tile", None, "slide", _no_device, _tile),
        Stage("embed", _GRID, "slide", lambda config: config.embed.device, _embed),
        Stage("train", _BAG, "cohort", lambda config: config.train.device, _train),
        Stage("predict", _BAG, "slide", lambda config: config.predict.device, _predict),
        Stage("explain", _BAG, "slide", lambda config: config.explain.device, _explain),
        Stage("heatmap", _MAP, "slide", _no_device, _heatmap),
        Stage("evaluate", None, "cohort", _no_device, _evaluate),
        Stage(EXPLANATIONS, _BAG, "cohort", lambda config: config.explain.device, _explanations),
        Stage("view", _GRID, "slide", _no_device, _view),
    )
}
STAGES = tuple(name for name in TABLE if name != EXPLANATIONS)  # of ``wsi run``, in order
APPLY = tuple(name for name in STAGES if TABLE[name].scope == "slide")  # what a lab that only applies a model needs
