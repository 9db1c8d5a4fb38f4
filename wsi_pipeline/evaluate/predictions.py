"""The prediction tables of slides or patients, read as arrays for each model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..csvtable import read_csv
from ..errors import ArtifactError
from ..project import LABEL_SEPARATOR, label_classes
from ..types import Bool, Float64

PROBABILITY, CALIBRATED = "prob_", "calibrated_"
_NO_LABEL = "no label in the manifest"
_COLUMNS = ("patient_id", "label", "model", "task", "weights", "held_out", "threshold", "predicted")
_TASK_COLUMNS = {
    "classification": ("set",),
    "multilabel": (),
    "regression": ("value",),
    "survival": ("time", "event", "risk"),
}


@dataclass(frozen=True)
class Prediction:
    """The prediction of one model for one slide or patient."""

    name: str  # slide_id, or patient_id
    patient_id: str
    label: str
    model: str
    task: str
    weights: str  # identifies the members, see ``predict.weights_id``
    held_out: bool  # no member was trained on the patient
    threshold: float  # NaN: none
    predicted: str  # the decision in the table; ``project.ABSTAIN`` for an abstention
    outcome: dict[str, float]  # class -> probability, in the model's order; or "value" or "risk"
    calibrated: dict[str, float]  # class -> probability after temperature scaling
    in_set: tuple[str, ...]  # classes of the prediction set
    follow_up: tuple[float, float] | None = None  # survival: time, and 1 for an event, 0 for censoring

    @property
    def target(self) -> Any:
        """The truth, in the form of ``Scored.truth``. Raises ``ValueError`` with the reason where it is unknown."""
        if self.task == "survival":
            if self.follow_up is None:
                raise ValueError("no time or event in the manifest")
            return self.follow_up
        if not self.label:
            raise ValueError(_NO_LABEL)
        if self.task == "regression":
            return _label_number(self.label)
        classes = list(self.outcome)
        own = label_classes(self.label) if self.task == "multilabel" else [self.label]
        if unknown := [c for c in own if c not in classes]:
            raise ValueError(f"the label {unknown[0]!r} is not a class of the model")
        return [c in own for c in classes] if self.task == "multilabel" else classes.index(self.label)

    @property
    def reason(self) -> str:
        """Why the prediction cannot be evaluated; empty where it can."""
        try:
            _ = self.target
        except ValueError as error:
            return str(error)
        return "" if self.held_out else "every member was trained on the patient"


@dataclass(frozen=True, eq=False)
class Scored:
    """The predictions of one model that can be evaluated: n labelled, held-out slides or patients."""

    model: str
    task: str
    classes: tuple[str, ...]
    names: tuple[str, ...]  # (n,) slide_ids or patient_ids
    patients: tuple[str, ...]  # (n,)
    truth: np.ndarray  # (n,) class index, or (n, C) bool (multilabel), (n,) value, (n, 2) time and event
    outcome: Float64  # (n, C) probabilities, values or risks
    calibrated: Float64  # (n, C) probabilities; (n, 0) for tasks without them
    sets: Bool  # (n, C) prediction sets; (n, 0) for tasks without them
    threshold: Float64  # (n,)
    weights: tuple[str, ...]  # (n,) identifies the members


def read_predictions(path: Path, unit: str = "slide_id") -> list[Prediction]:
    """Read a table of predictions.

    Parameters
    ----------
    path : Path
        predictions.csv, or patients.csv.
    unit : str
        The column with the names of the rows: ``slide_id``, or ``patient_id`` for patients.csv.

    Returns
    -------
    list of Prediction
        In the order of the rows.

    Raises
    ------
    ArtifactError
        Where the file is missing, damaged, or of an earlier version of predict.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; run `wsi predict` first")
    header, rows = read_csv(path)
    tasks = {row[header.index("task")] for row in rows if "task" in header}
    needed = [unit, *_COLUMNS, *(column for task in sorted(tasks) for column in _TASK_COLUMNS.get(task, ()))]
    if missing := [name for name in needed if name not in header]:
        raise ArtifactError(f"{path} has no column {missing[0]!r}; delete it and run `wsi predict` again")
    try:
        return [_prediction(dict(zip(header, row, strict=True)), unit) for row in rows]
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete it and run `wsi predict` again") from error


def scored(predictions: Sequence[Prediction], model: str) -> Scored | None:
    """The predictions of ``model`` that can be evaluated; None where none is labelled and held out."""
    usable = [p for p in predictions if p.model == model and not p.reason]
    if not usable:
        return None
    first = usable[0]
    classes = tuple(first.outcome)
    with_sets = first.task == "classification"
    kind = {"classification": np.int64, "multilabel": np.bool_}.get(first.task, np.float64)
    return Scored(
        model=model,
        task=first.task,
        classes=classes,
        names=tuple(p.name for p in usable),
        patients=tuple(p.patient_id for p in usable),
        truth=np.array([p.target for p in usable], kind),
        outcome=np.array([[p.outcome[c] for c in classes] for p in usable], np.float64),
        calibrated=np.array([[p.calibrated[c] for c in classes if first.calibrated] for p in usable], np.float64),
        sets=np.array([[c in p.in_set for c in classes if with_sets] for p in usable], np.bool_),
        threshold=np.array([p.threshold for p in usable], np.float64),
        weights=tuple(p.weights for p in usable),
    )


def left_out(predictions: Sequence[Prediction], model: str, what: str) -> list[str]:
    """Why predictions of ``model`` are not evaluated, one line per reason; ``what``: "slides" or "patients"."""
    reasons = Counter(p.reason for p in predictions if p.model == model and p.reason)
    if what == "patients" and _NO_LABEL in reasons:
        reasons["no label, or slides with different labels"] = reasons.pop(_NO_LABEL)
    return [f"{model}: {count} of its {what} left out: {reason}" for reason, count in sorted(reasons.items())]


def _prediction(row: Mapping[str, str], unit: str) -> Prediction:
    task = row["task"]
    if task not in _TASK_COLUMNS:
        raise ValueError(f"unknown task {task!r}")
    if task in ("classification", "multilabel"):
        outcome, calibrated = _numbers(row, PROBABILITY), _numbers(row, CALIBRATED)
        if list(outcome) != list(calibrated) or not outcome:
            raise ValueError("its columns prob_… and calibrated_… do not have the same classes")
    else:
        column = "value" if task == "regression" else "risk"
        outcome, calibrated = {column: float(row[column])}, {}
    has_follow_up = task == "survival" and row["time"] and row["event"]
    return Prediction(
        name=row[unit],
        patient_id=row["patient_id"],
        label=row["label"],
        model=row["model"],
        task=task,
        weights=row["weights"],
        held_out=row["held_out"].lower() == "true",
        threshold=float(row["threshold"] or "nan"),
        predicted=row["predicted"],
        outcome=outcome,
        calibrated=calibrated,
        in_set=tuple(row.get("set", "").split(LABEL_SEPARATOR)),
        follow_up=(float(row["time"]), float(row["event"])) if has_follow_up else None,
    )


def _numbers(row: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(text) for name, text in row.items() if name.startswith(prefix) and text}


def _label_number(label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"the label {label!r} is not a number")
    return value
