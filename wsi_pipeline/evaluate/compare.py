"""``wsi compare``: two models compared on the same slides and patients, which are held out in both runs.

AUROC of one class by DeLong's paired test (see ``delong``), all other measures by a paired bootstrap over patients:
each resample draws patients once for both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from ..artifacts import read_key, write_text
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

    level: str  # "slides" or "patients"
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
    method: str  # "DeLong" or "bootstrap"


def compare_runs(
    run_a: Path, run_b: Path, *, model_a: str | None = None, model_b: str | None = None
) -> list[Comparison]:
    """Compare the models of two runs on the rows that both have.

    Parameters
    ----------
    run_a, run_b : Path
        Run folders; they may be the same. Settings are those of the first run's section ``evaluate``.
    model_a, model_b : str, optional
        One model of each run; ``model_b`` defaults to ``model_a``. By default every model that both runs have.

    Returns
    -------
    list of Comparison
        Slides first; then patients, where some patient has several slides.

    Raises
    ------
    ArtifactError
        Where there are no predictions, no common rows, or schema, labels, tasks or classes differ.
    ConfigError
        For a model that a run does not have, or where the runs have no model in common.
    """
    for run in (run_a, run_b):
        read_key(RunFolder(run).predictions)  # refuses a run of another schema, before its config
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
    """The comparisons as a table for the terminal. ``names``: of the two runs; equal ones become first and second."""
    if names[0] == names[1]:
        names = ("first", "second")
    table = Table(title="held out in both runs; difference with 95 % interval, p two-sided and not corrected")
    for title in ("of", "model", "measure", *names, "difference", "p", "test"):
        table.add_column(Text(title), overflow="fold")
    previous = None
    for one in found:
        block = (one.level, one.model_a, one.model_b)
        if block != previous:
            table.add_section()
        model = one.model_a if one.model_a == one.model_b else f"{one.model_a} → {one.model_b}"
        head = (f"{one.n} {one.level}", model) if block != previous else ("", "")
        between = "" if np.isnan(one.low) else f" ({one.low:+.3f} to {one.high:+.3f})"
        change = "–" if np.isnan(one.difference) else f"{one.difference:+.3f}{between}"
        values = (f"{_digits(one.a)}", f"{_digits(one.b)}", change, _p_text(one.p), one.method)
        table.add_row(*(Text(cell) for cell in (*head, metric_name(one.metric), *values)))
        previous = block
    return table


def write_comparison(path: Path, found: Sequence[Comparison]) -> None:
    """Write the comparisons as a CSV file with ``COLUMNS``."""
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
        raise ArtifactError(f"{run} is not a run folder (it has no config.yaml); give the folder in the config's out:")
    return load_config(path).evaluate


def _pairs(
    rows: Sequence[Sequence[Prediction]], runs: tuple[Path, Path], model_a: str | None, model_b: str | None
) -> list[tuple[str, str]]:
    """The names of the models to compare."""
    models = [list(dict.fromkeys(row.model for row in of_run)) for of_run in rows]
    if model_b is not None and model_a is None:
        raise ConfigError("--model-b needs --model: the model of the first run that it is compared with")
    if model_a is None:
        both = [name for name in models[0] if name in models[1]]
        if not both:
            raise ConfigError(
                f"{runs[0]} ({', '.join(models[0])}) and {runs[1]} ({', '.join(models[1])}) share no model; "
                f"name two with --model A --model-b B"
            )
        return [(name, name) for name in both]
    pair = (model_a, model_b or model_a)
    for name, run, names in zip(pair, runs, models, strict=True):
        if name not in names:
            raise ConfigError(f"{run} has no model {name!r}; it has {', '.join(names)}")
    return [pair]


def _shared(
    rows: Sequence[Sequence[Prediction]], runs: tuple[Path, Path], pair: tuple[str, str], level: str
) -> tuple[Scored, Scored]:
    """Both models on the rows that are usable in both runs, in the order of the first run."""
    usable = [
        {row.name: row for row in of_run if row.model == model and not row.reason}
        for of_run, model in zip(rows, pair, strict=True)
    ]
    names = [name for name in usable[0] if name in usable[1]]
    models = pair[0] if pair[0] == pair[1] else f"{pair[0]} and {pair[1]}"
    where = f"{runs[0]} and {runs[1]}"
    if not names:
        raise ArtifactError(
            f"{models}: no {level[:-1]} is labelled and held out in both {where}; compare runs of one manifest"
        )
    kinds = [(row.task, list(row.outcome)) for row in (of_run[names[0]] for of_run in usable)]
    if kinds[0] != kinds[1]:
        first, second = (f"{task} of {', '.join(classes)}" for task, classes in kinds)
        raise ArtifactError(f"{models}: {runs[0]} is {first}, but {runs[1]} {second}; compare runs of one task")
    for name in names:
        if usable[0][name].target != usable[1][name].target:
            raise ArtifactError(
                f"{models}: the labels of {level[:-1]} {name!r} differ between {where}; predict both with one manifest"
            )
    # Patients are those of the first run; risks are compared only within one ensemble of both the first and second run.
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
    """Compare every measure of the task."""
    of_a, of_b = statistic(first, section), statistic(second, section)
    all_rows = np.arange(len(first.names))
    values = of_a(all_rows), of_b(all_rows)
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
    """Rows -> each measure of ``first`` minus that of ``second``."""

    def difference_of(rows: Int64) -> dict[str, float]:
        subtracted = second(rows)
        return {name: value - subtracted[name] for name, value in first(rows).items()}

    return difference_of
