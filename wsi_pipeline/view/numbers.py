"""The results of predict and evaluate as texts for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..evaluate.predictions import Prediction, read_predictions
from ..evaluate.summary import digits, mean_sd, measure_text, metric_name
from ..project import ABSTAIN, MethodSelection, label_classes

_OUTCOMES = {"regression": "Value", "survival": "Risk"}  # classification, multilabel: Probability
_OUTCOME_NOTES = {
    "multilabel": "Probability of each label",
    "regression": "Predicted value, in the unit of the label",
    "survival": "Predicted risk (log hazard; higher means an earlier event)",
}
_CAPTIONS = {
    "models": "Slides, each predicted by models that were not trained on its patient.",
    "patients": "Patients: the slides of each as one bag, or the mean over them.",
}
_LESIONS = (
    "Lesions detected by maxima of the maps of {}; the score is the mean over 1/4 to 8 false positives per slide."
)
_SEEDS = "Over seeds: the folds of each seed together test every bag once. Mean ± sd, and each seed."
_SELECTION = (
    "Patch flipping on validation slides: mean prediction while the most relevant patches are removed; lower is better."
)
_BRACKETS = " In brackets: 95 % bootstrap interval over patients."
_MAP_MEANS = ("auprc", "base_rate", "lift", "auroc")


@dataclass(frozen=True)
class Outcome:
    """One number of a prediction: a probability, value or risk."""

    name: str  # the class; "value" or "risk"
    text: str
    percent: float | None  # length of the bar; None for tasks without probabilities
    threshold_percent: float | None  # of two classes


@dataclass(frozen=True)
class SlidePrediction:
    """The prediction of one model for one slide."""

    model: str
    predicted: str  # empty for tasks without classes
    correct: bool | None  # None where the slide has no label that the model knows, or the model abstains
    held_out: bool
    outcomes: tuple[Outcome, ...]  # one; of multilabel one per label
    sort_value: str  # the largest number, by which the table is sorted

    @property
    def summary(self) -> str:
        """The prediction in one line."""
        numbers = ", ".join(f"{one.name} {one.text}" for one in self.outcomes)
        return f"{self.predicted} ({numbers})" if self.predicted else numbers


@dataclass(frozen=True)
class PredictionTable:
    """The predictions of all slides, and the title and explanation of the number that is shown."""

    models: tuple[str, ...] = ()  # in order
    of: Mapping[tuple[str, str], SlidePrediction] | None = None  # (slide_id, model) -> prediction
    outcome: str = "Probability"
    note: str = ""
    task: str = ""  # empty where there is no prediction

    def get(self, slide_id: str, model: str) -> SlidePrediction | None:
        """The prediction of ``model`` for a slide; None where there is none."""
        return (self.of or {}).get((slide_id, model))


@dataclass(frozen=True)
class Cell:
    """A number, its bootstrap interval, and DeLong's interval where there is one."""

    value: str
    interval: str
    delong: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: its name and numbers."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class NumberTable:
    """A table of evaluate's results."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Metrics:
    """The results of evaluate; empty where it was not run."""

    tables: tuple[NumberTable, ...] = ()
    notes: tuple[str, ...] = ()


def read_slide_predictions(path: Path) -> PredictionTable:
    """Read predictions.csv for the report; empty where it does not exist.

    Parameters
    ----------
    path : Path

    Returns
    -------
    PredictionTable
        For two classes with the probability of the last, the positive one; for more, that of the most probable; for
        multilabel, that of each label.

    Raises
    ------
    ArtifactError
        Where the file is damaged, or of an earlier version of predict.
    """
    if not path.exists():
        return PredictionTable()
    found = read_predictions(path)
    models = tuple(dict.fromkeys(one.model for one in found))
    predictions = {(one.name, one.model): _slide_prediction(one) for one in found}
    if not found:
        return PredictionTable(models, predictions)
    task, classes = found[0].task, list(found[0].outcome)
    two = task == "classification" and len(classes) == 2
    number = _OUTCOME_NOTES.get(task, f"Probability of {classes[-1] if two else 'the most probable class'}")
    note = f"{number}, mean over the models of the ensemble"
    note += "; the line marks the threshold, chosen on validation slides." if two else "."
    return PredictionTable(models, predictions, _OUTCOMES.get(task, "Probability"), note, task)


def read_metrics(path: Path) -> Metrics:
    """The tables of a report.json; empty where it does not exist. Raises ``ArtifactError`` where it is damaged."""
    if not path.exists():
        return Metrics()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        slides, patients = data["models"], data.get("patients", {})
        several = any(model["n_slides"] > model["n_patients"] for model in slides.values())
        tables = [
            *([_metric_table(_CAPTIONS["models"], slides, "n_slides")] if slides else []),
            *([_metric_table(_CAPTIONS["patients"], patients, "n_patients")] if several and patients else []),
            *([_map_table(data["maps"])] if data["maps"] else []),
            *_froc_tables(data.get("froc", ())),
            *([_seeds_table(data["seeds"])] if data.get("seeds") else []),
        ]
        return Metrics(tuple(tables), tuple(str(note) for note in data["notes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run `wsi evaluate` again") from error


def selection_table(selections: Mapping[str, MethodSelection]) -> NumberTable:
    """Area under the patch-flipping curve: one row per method, one column per model; the selected method is marked."""
    found = selections.values()
    names = sorted({name for selection in found for name in selection.aupc})
    lines = [Line(name, tuple(_area(selection, name) for selection in found)) for name in names]
    random = Line("random scores", tuple(Cell(digits(selection.random), "") for selection in found))
    slides = Line("Slides", tuple(Cell(str(selection.slides), "") for selection in found))
    return NumberTable(_SELECTION, "Method", tuple(selections), (*lines, random, slides))


def _area(selection: MethodSelection, name: str) -> Cell:
    if name not in selection.aupc:
        return Cell("–", "")
    return Cell(digits(selection.aupc[name]), "selected" if name == selection.method else "")


def _metric_table(caption: str, models: Mapping[str, Any], count: str) -> NumberTable:
    """One row per measure, one column per model."""
    metrics = dict.fromkeys(name for model in models.values() for name in model["metrics"])
    lines = [
        Line(metric_name(name), tuple(_cell(model["metrics"].get(name)) for model in models.values()))
        for name in metrics
    ]
    counts = Line(
        "Slides" if count == "n_slides" else "Patients", tuple(Cell(str(m[count]), "") for m in models.values())
    )
    return NumberTable(caption + _BRACKETS, "Measure", tuple(models), (*lines, counts))


def _froc_tables(found: Sequence[Mapping[str, Any]]) -> list[NumberTable]:
    """The table of FROC scores; empty where no model has one."""
    models = {one["model"]: one for one in found if one["metrics"]}
    return [_metric_table(_LESIONS.format(found[0]["method"]), models, "n_slides")] if models else []


def _seeds_table(found: Sequence[Mapping[str, Any]]) -> NumberTable:
    """One row per measure, one column per model."""
    models, metrics = (dict.fromkeys(one[name] for one in found) for name in ("model", "metric"))
    of = {(one["metric"], one["model"]): one for one in found}
    lines = [Line(metric_name(name), tuple(_seeds_cell(of.get((name, model))) for model in models)) for name in metrics]
    return NumberTable(_SEEDS, "Measure", tuple(models), tuple(lines))


def _seeds_cell(one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return Cell("–", "")
    return Cell(mean_sd(one), ", ".join(map(digits, one["values"].values())) if one["sd"] is not None else "")


def _map_table(maps: Sequence[Mapping[str, Any]]) -> NumberTable:
    """One row per map, one column per measure."""
    lines = [
        Line(
            f"{m['model']} {m['method']}: {m['target']}",
            (*(_cell(m.get(name)) for name in _MAP_MEANS), Cell(str(m["n_slides"]), "")),
        )
        for m in maps
    ]
    caption = "Localisation of the maps: mean over annotated slides. The base rate is the AUPRC of a map without "
    caption += "information."
    return NumberTable(caption, "Map", (*map(metric_name, _MAP_MEANS), "Slides"), tuple(lines))


def _slide_prediction(prediction: Prediction) -> SlidePrediction:
    shown = [_outcome(prediction, name) for name in _shown_outcomes(prediction)]
    return SlidePrediction(
        model=prediction.model,
        predicted=_decision(prediction),
        correct=_is_correct(prediction),
        held_out=prediction.held_out,
        outcomes=tuple(shown),
        sort_value=max(shown, key=lambda one: prediction.outcome[one.name]).text,
    )


def _shown_outcomes(prediction: Prediction) -> list[str]:
    """The classes whose probability is shown; "value" or "risk"."""
    names = list(prediction.outcome)
    if prediction.task == "classification" and len(names) > 2:
        return [max(names, key=lambda name: prediction.outcome[name])]
    return names if prediction.task == "multilabel" else names[-1:]


def _outcome(prediction: Prediction, name: str) -> Outcome:
    value = prediction.outcome[name]
    if prediction.task in _OUTCOMES:
        return Outcome(name, digits(value), None, None)
    has_threshold = prediction.task == "classification" and prediction.threshold == prediction.threshold
    threshold = round(100 * prediction.threshold, 1) if has_threshold else None
    return Outcome(name, f"{value:.3f}", round(100 * value, 1), threshold)


def _decision(prediction: Prediction) -> str:
    if prediction.task == "classification" and prediction.predicted == ABSTAIN:
        return f"{ABSTAIN} ({', '.join(name for name in prediction.in_set if name) or 'no class conforms'})"
    return prediction.predicted


def _is_correct(prediction: Prediction) -> bool | None:
    if prediction.task == "multilabel" and prediction.label:
        return set(label_classes(prediction.predicted)) == set(label_classes(prediction.label))
    is_known = prediction.task == "classification" and prediction.label in prediction.outcome
    return prediction.predicted == prediction.label if is_known and prediction.predicted != ABSTAIN else None


def _cell(measure: Mapping[str, Any] | None) -> Cell:
    value, between = measure_text(measure)
    ends = [end for end in (measure or {}).get("delong", ()) if end is not None]
    return Cell(value, between, f"DeLong {digits(ends[0])}–{digits(ends[1])}" if ends else "")
