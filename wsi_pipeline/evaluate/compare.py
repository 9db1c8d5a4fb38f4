"""``wsi compare``: is one model better than another? Both on the same slides and patients, held out in both runs.

AUROC of one class by DeLong's paired test (see ``delong``), everything else by a paired bootstrap over patients: a
resample draws patients once, for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from ..artifacts import write_text
from ..config import EvaluateConfig, load_config
from ..csvtable import csv_text, format_number
from ..errors import ArtifactError, ConfigError
from ..project import RunFolder
from ..types import Int64
from .bootstrap import draws, interval, p_value
from .delong import areas, difference
from .predictions import Prediction, Scored, read_predictions, scored
from .summary import metric_name
from .task_metrics import one_against_rest, statistic

COLUMNS = (
    *("level", "model_a", "model_b", "metric", "n", "n_patients"),
    *("a", "b", "difference", "low", "high", "p", "method"),
)


@dataclass(frozen=True)
class Comparison:
    """One measure of two models on the same rows; the difference is b minus a, with its 95 % interval."""

    level: str  # slides or patients
    model_a: str
    model_b: str
    metric: str
    n: int
    n_patients: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float  # two-sided
    method: str  # DeLong or bootstrap


def compare_runs(
    run_a: Path, run_b: Path, *, model_a: str | None = None, model_b: str | None = None
) -> list[Comparison]:
    """Every model that both runs have, or ``model_a`` of the first and ``model_b`` (the same name) of the second.

    Patients follow the slides where some have more than one. Settings are those of the first run's evaluate section.
    Raises ``ArtifactError`` where there are no predictions, nothing is shared, or labels or classes differ, and
    ``ConfigError`` for a model that is not there.
    """
    section = _section(run_a)
    slides = [read_predictions(RunFolder(run).predictions) for run in (run_a, run_b)]
    patients = [read_predictions(RunFolder(run).patients, "patient_id") for run in (run_a, run_b)]
    found: list[Comparison] = []
    for pair in _pairs(slides, (run_a, run_b), model_a, model_b):
        by_slide = _shared(slides, (run_a, run_b), pair, "slides")
        found += _compare(*by_slide, "slides", section)
        if len(set(by_slide[0].patients)) < len(by_slide[0].patients):
            found += _compare(*_shared(patients, (run_a, run_b), pair, "patients"), "patients", section)
    return found


def comparison_table(found: Sequence[Comparison], names: tuple[str, str]) -> Table:
    """For the terminal. ``names``: of the two runs; those of one run alone are first and second."""
    if names[0] == names[1]:
        names = ("first", "second")
    shown = Table(title="held out in both runs; difference with 95 % interval, p two-sided and not corrected")
    for title in ("of", "model", "measure", *names, "difference", "p", "test"):
        shown.add_column(Text(title), overflow="fold")
    previous = None
    for one in found:
        block = (one.level, one.model_a, one.model_b)
        if block != previous:
            shown.add_section()
        model = one.model_a if one.model_a == one.model_b else f"{one.model_a} → {one.model_b}"
        head = (f"{one.n} {one.level}", model) if block != previous else ("", "")
        between = "" if np.isnan(one.low) else f" ({one.low:+.3f} to {one.high:+.3f})"
        change = "–" if np.isnan(one.difference) else f"{one.difference:+.3f}{between}"
        values = (f"{_digits(one.a)}", f"{_digits(one.b)}", change, _p_text(one.p), one.method)
        shown.add_row(*(Text(cell) for cell in (*head, metric_name(one.metric), *values)))
        previous = block
    return shown


def write_comparison(path: Path, found: Sequence[Comparison]) -> None:
    """The lines as a CSV with ``COLUMNS``."""
    write_text(path, csv_text(COLUMNS, ([_cell(getattr(one, name)) for name in COLUMNS] for one in found)))


def _cell(value: object) -> object:
    return format_number(value) if isinstance(value, float) else value


def _digits(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _p_text(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _section(run: Path) -> EvaluateConfig:
    path = run / "config.yaml"
    if not path.exists():
        raise ArtifactError(f"{run} is no run folder (it has no config.yaml); give the folder in the config's out:")
    return load_config(path).evaluate


def _pairs(
    rows: Sequence[Sequence[Prediction]], runs: tuple[Path, Path], model_a: str | None, model_b: str | None
) -> list[tuple[str, str]]:
    """The models to compare, by name."""
    known = [list(dict.fromkeys(row.model for row in of_run)) for of_run in rows]
    if model_b is not None and model_a is None:
        raise ConfigError("--model-b needs --model: the model of the first run that it is compared with")
    if model_a is None:
        both = [name for name in known[0] if name in known[1]]
        if not both:
            raise ConfigError(
                f"{runs[0]} ({', '.join(known[0])}) and {runs[1]} ({', '.join(known[1])}) share no model; "
                f"name two with --model A --model-b B"
            )
        return [(name, name) for name in both]
    pair = (model_a, model_b or model_a)
    for name, run, names in zip(pair, runs, known, strict=True):
        if name not in names:
            raise ConfigError(f"{run} has no model {name!r}; it has {', '.join(names)}")
    return [pair]


def _shared(
    rows: Sequence[Sequence[Prediction]], runs: tuple[Path, Path], pair: tuple[str, str], level: str
) -> tuple[Scored, Scored]:
    """Both models on the rows that both can be measured on, in the order of the first run."""
    usable = [
        {row.name: row for row in of_run if row.model == model and not row.reason}
        for of_run, model in zip(rows, pair, strict=True)
    ]
    names = [name for name in usable[0] if name in usable[1]]
    whom = pair[0] if pair[0] == pair[1] else f"{pair[0]} and {pair[1]}"
    where = f"{runs[0]} and {runs[1]}"
    if not names:
        raise ArtifactError(
            f"{whom}: no {level[:-1]} is labelled and held out in both {where}; compare runs of one manifest"
        )
    kinds = [(row.task, list(row.outcome)) for row in (of_run[names[0]] for of_run in usable)]
    if kinds[0] != kinds[1]:
        first, second = (f"{task} of {', '.join(classes)}" for task, classes in kinds)
        raise ArtifactError(f"{whom}: {runs[0]} is {first}, but {runs[1]} {second}; compare runs of one task")
    for name in names:
        if usable[0][name].target != usable[1][name].target:
            raise ArtifactError(
                f"{whom}: the labels of {level[:-1]} {name!r} differ between {where}; predict both with one manifest"
            )
    # Patients are those of the first run; risks are compared where one ensemble gave them in either run.
    patients = {name: usable[0][name].patient_id for name in names}
    ensembles = {name: f"{usable[0][name].weights} {usable[1][name].weights}" for name in names}
    ordered = [
        [replace(of_run[name], patient_id=patients[name], weights=ensembles[name]) for name in names]
        for of_run in usable
    ]
    first_model, second_model = (scored(of_run, model) for of_run, model in zip(ordered, pair, strict=True))
    assert first_model is not None
    assert second_model is not None
    return first_model, second_model


def _compare(first: Scored, second: Scored, level: str, section: EvaluateConfig) -> Iterator[Comparison]:
    """Every measure of the task."""
    of_a, of_b = statistic(first, section), statistic(second, section)
    everyone = np.arange(len(first.names))
    values = of_a(everyone), of_b(everyone)
    whole, drawn = draws(_minus(of_b, of_a), first.patients, section.bootstrap, section.seed)
    classes = {name: (c, positive) for name, c, positive in one_against_rest(first)}
    for metric, change in whole.items():
        if metric in classes:
            c, positive = classes[metric]
            scores = np.stack([first.outcome[:, c], second.outcome[:, c]])
            tested, method = difference(areas(positive, scores, first.patients))[1:], "DeLong"
        else:
            between = interval(change, drawn[metric])
            p = p_value(drawn[metric]) if np.isfinite(change) else float("nan")
            tested, method = (between.low, between.high, p), "bootstrap"
        what = (level, first.model, second.model, metric, len(first.names), len(set(first.patients)))
        yield Comparison(*what, values[0][metric], values[1][metric], change, *tested, method)


def _minus(
    first: Callable[[Int64], dict[str, float]], second: Callable[[Int64], dict[str, float]]
) -> Callable[[Int64], dict[str, float]]:
    def change(rows: Int64) -> dict[str, float]:
        taken = second(rows)
        return {name: value - taken[name] for name, value in first(rows).items()}

    return change
