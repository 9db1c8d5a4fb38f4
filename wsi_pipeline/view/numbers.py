"""What predict and evaluate found, in the words and digits of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..evaluate.predictions import ABSTAIN, Prediction, labels_of, read_predictions
from ..evaluate.summary import digits, mean_sd, measure_text, metric_name
from ..project import MethodSelection

_OUTCOMES = {"regression": "Value", "survival": "Risk"}  # classification, multilabel: Probability
_CAPTIONS = {
    "models": "Slides, each predicted by models that have not seen its patient.",
    "patients": "Patients: the slides of each as one bag, or the mean over them.",
}
_LESIONS = "Lesions found by peaks of the maps by {}; the score is the mean over 1/4 to 8 false positives a slide."
_SEEDS = "Over seeds: the folds of each seed together test every bag once. Mean ± sd, and each seed."
_CHOICE = "Patch flipping on validation slides: what is still said as the most relevant patches go; lower is better."
_BRACKETS = " In brackets: 95 % bootstrap interval over patients."
_MAP_MEANS = ("auprc", "base_rate", "lift", "auroc")


@dataclass(frozen=True)
class Verdict:
    """What one model says of one slide."""

    model: str
    predicted: str  # empty for tasks without classes
    right: bool | None  # None where the slide has no label that the model knows, or the model abstains
    held_out: bool
    of: str  # the class that the probability is of; value or risk
    probability: str  # or the value, or the risk
    percent: float | None  # the bar; None for tasks without probabilities
    threshold_percent: float | None


@dataclass(frozen=True)
class Verdicts:
    """Models in order, what each says of each slide, and what the number that is shown is."""

    models: tuple[str, ...] = ()
    of: Mapping[tuple[str, str], Verdict] | None = None  # (slide_id, model) -> verdict
    outcome: str = "Probability"
    note: str = ""

    def get(self, slide_id: str, model: str) -> Verdict | None:
        """None where the model has not judged the slide."""
        return (self.of or {}).get((slide_id, model))


@dataclass(frozen=True)
class Cell:
    """A number, its interval, and DeLong's where there is one."""

    value: str
    interval: str
    delong: str = ""


@dataclass(frozen=True)
class Line:
    """A name and its numbers."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class NumberTable:
    """One table of evaluate."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Metrics:
    """What evaluate found; empty where it was not run."""

    tables: tuple[NumberTable, ...] = ()
    notes: tuple[str, ...] = ()


def read_verdicts(path: Path) -> Verdicts:
    """What predict says.

    Of two classes, the last is the positive one and its probability is shown; of more, that of the likeliest.
    """
    if not path.exists():
        return Verdicts()
    found = read_predictions(path)
    models = tuple(dict.fromkeys(one.model for one in found))
    verdicts = {(one.name, one.model): _verdict(one) for one in found}
    if not found:
        return Verdicts(models, verdicts)
    task, classes = found[0].task, list(found[0].outcome)
    two = task == "classification" and len(classes) == 2
    what = {"regression": "Predicted value", "survival": "Log relative risk"}.get(task)
    what = what or f"Probability of {classes[-1] if two else 'the likeliest class'}"
    note = f"{what}, mean over the models of the ensemble"
    note += "; the line marks the threshold, chosen on validation slides." if two else "."
    return Verdicts(models, verdicts, _OUTCOMES.get(task, "Probability"), note)


def read_metrics(path: Path) -> Metrics:
    """The tables of evaluate's report.json."""
    if not path.exists():
        return Metrics()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        slides, patients = data["models"], data.get("patients", {})
        apart = any(model["n_slides"] > model["n_patients"] for model in slides.values())
        tables = [
            *([_metric_table(_CAPTIONS["models"], slides, "n_slides")] if slides else []),
            *([_metric_table(_CAPTIONS["patients"], patients, "n_patients")] if apart and patients else []),
            *([_map_table(data["maps"])] if data["maps"] else []),
            *_froc_tables(data.get("froc", ())),
            *([_seeds_table(data["seeds"])] if data.get("seeds") else []),
        ]
        return Metrics(tuple(tables), tuple(str(note) for note in data["notes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run `wsi evaluate` again") from error


def choice_table(choices: Mapping[str, MethodSelection]) -> NumberTable:
    """Area under patch flipping: a line a method, a column a model; the picked one is marked."""
    names = sorted({name for choice in choices.values() for name in choice.aupc})
    lines = [Line(name, tuple(_area(choice, name) for choice in choices.values())) for name in names]
    chance = Line("random scores", tuple(Cell(digits(choice.random), "") for choice in choices.values()))
    slides = Line("Slides", tuple(Cell(str(choice.slides), "") for choice in choices.values()))
    return NumberTable(_CHOICE, "Method", tuple(choices), (*lines, chance, slides))


def _area(choice: MethodSelection, name: str) -> Cell:
    if name not in choice.aupc:
        return Cell("–", "")
    return Cell(digits(choice.aupc[name]), "picked" if name == choice.method else "")


def _metric_table(caption: str, models: Mapping[str, Any], count: str) -> NumberTable:
    """A line a measure, a column a model."""
    metrics = dict.fromkeys(name for model in models.values() for name in model["metrics"])
    lines = [
        Line(metric_name(name), tuple(_cell(model["metrics"].get(name)) for model in models.values()))
        for name in metrics
    ]
    counted = Line(
        "Slides" if count == "n_slides" else "Patients", tuple(Cell(str(m[count]), "") for m in models.values())
    )
    return NumberTable(caption + _BRACKETS, "Measure", tuple(models), (*lines, counted))


def _froc_tables(found: Sequence[Mapping[str, Any]]) -> list[NumberTable]:
    """One, or none where no model has such a score."""
    models = {one["model"]: one for one in found if one["metrics"]}
    return [_metric_table(_LESIONS.format(found[0]["method"]), models, "n_slides")] if models else []


def _seeds_table(found: Sequence[Mapping[str, Any]]) -> NumberTable:
    """A line a measure, a column a model."""
    models, metrics = (dict.fromkeys(one[name] for one in found) for name in ("model", "metric"))
    of = {(one["metric"], one["model"]): one for one in found}
    lines = [Line(metric_name(name), tuple(_seeds_cell(of.get((name, model))) for model in models)) for name in metrics]
    return NumberTable(_SEEDS, "Measure", tuple(models), tuple(lines))


def _seeds_cell(one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return Cell("–", "")
    return Cell(mean_sd(one), ", ".join(map(digits, one["values"].values())) if one["sd"] is not None else "")


def _map_table(maps: Sequence[Mapping[str, Any]]) -> NumberTable:
    """A line a map, a column a measure."""
    lines = [
        Line(
            f"{m['model']} {m['method']}: {m['target']}",
            (*(_cell(m.get(name)) for name in _MAP_MEANS), Cell(str(m["n_slides"]), "")),
        )
        for m in maps
    ]
    caption = "Maps against the annotations: mean over annotated slides. The base rate is what a map without "
    caption += "information would reach."
    return NumberTable(caption, "Map", (*map(metric_name, _MAP_MEANS), "Slides"), tuple(lines))


def _verdict(said: Prediction) -> Verdict:
    value, of = _shown(said)
    probable = said.task not in _OUTCOMES
    two = said.task == "classification" and said.threshold == said.threshold
    return Verdict(
        model=said.model,
        predicted=_named(said),
        right=_right(said),
        held_out=said.held_out,
        of=of,
        probability=f"{value:.3f}" if probable else digits(value),
        percent=round(100 * value, 1) if probable else None,
        threshold_percent=round(100 * said.threshold, 1) if two else None,
    )


def _shown(said: Prediction) -> tuple[float, str]:
    """The number of a verdict, and what it is of."""
    names = list(said.outcome)
    two = said.task == "classification" and len(names) == 2
    of = names[-1] if two else max(names, key=lambda name: said.outcome[name])
    return said.outcome[of], of


def _named(said: Prediction) -> str:
    if said.task == "classification" and said.predicted == ABSTAIN:
        return f"{ABSTAIN} ({', '.join(name for name in said.members if name) or 'no class fits'})"
    return said.predicted


def _right(said: Prediction) -> bool | None:
    if said.task == "multilabel" and said.label:
        return set(labels_of(said.predicted)) == set(labels_of(said.label))
    if said.task == "classification" and said.label in said.outcome and said.predicted != ABSTAIN:
        return said.predicted == said.label
    return None


def _cell(measure: Mapping[str, Any] | None) -> Cell:
    value, between = measure_text(measure)
    ends = [end for end in (measure or {}).get("delong", ()) if end is not None]
    return Cell(value, between, f"DeLong {digits(ends[0])}–{digits(ends[1])}" if ends else "")
