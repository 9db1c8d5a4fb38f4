"""What predict wrote, of slides or of patients, as arrays for each model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..csvtable import read_csv
from ..errors import ArtifactError
from ..project import LABEL_SEPARATOR
from ..types import Bool, Float64

ABSTAIN = "abstain"  # what predict names where the prediction set does not hold just one class
PROBABILITY, CALIBRATED = "prob_", "calibrated_"
_NO_LABEL = "no label in the manifest"
_NEEDED = ("patient_id", "label", "model", "task", "weights", "held_out", "threshold", "predicted")
_OF_TASK = {
    "classification": ("set",),
    "multilabel": (),
    "regression": ("value",),
    "survival": ("time", "event", "risk"),
}


@dataclass(frozen=True)
class Prediction:
    """One slide or patient, and one model."""

    name: str  # slide_id, or patient_id
    patient_id: str
    label: str
    model: str
    task: str
    weights: str  # which members judged, see ``predict.weights_id``
    held_out: bool  # no member that judged it has seen the patient
    threshold: float  # NaN: none
    predicted: str  # as predict names it; ``ABSTAIN`` where it does not
    outcome: dict[str, float]  # class -> probability, in the model's order; or value or risk
    calibrated: dict[str, float]  # class -> probability after temperature
    members: tuple[str, ...]  # classes of the prediction set
    followed: tuple[float, float] | None = None  # survival: time, and 1 for an event or 0

    @property
    def target(self) -> Any:
        """What is true, as ``Scored.truth`` has it. Raises ``ValueError`` with the reason where it is not known."""
        if self.task == "survival":
            if self.followed is None:
                raise ValueError("no time or event in the manifest")
            return self.followed
        if not self.label:
            raise ValueError(_NO_LABEL)
        if self.task == "regression":
            return _label_number(self.label)
        classes = list(self.outcome)
        own = labels_of(self.label) if self.task == "multilabel" else [self.label]
        if unknown := [c for c in own if c not in classes]:
            raise ValueError(f"the label {unknown[0]!r} is no class of the model")
        return [c in own for c in classes] if self.task == "multilabel" else classes.index(self.label)

    @property
    def reason(self) -> str:
        """Why it says nothing of how good the model is; empty where it does."""
        try:
            _ = self.target
        except ValueError as error:
            return str(error)
        return "" if self.held_out else "every member has seen the patient in training"


@dataclass(frozen=True, eq=False)
class Scored:
    """The n labelled, held-out slides or patients of one model."""

    model: str
    task: str
    classes: tuple[str, ...]
    names: tuple[str, ...]  # (n,) slide_ids or patient_ids
    patients: tuple[str, ...]  # (n,)
    truth: np.ndarray  # (n,) index into classes, (n, C) Bool of multilabel, (n,) value, (n, 2) time and event
    outcome: Float64  # (n, C) probabilities, values or risks
    calibrated: Float64  # (n, C) probabilities; (n, 0) for tasks without
    sets: Bool  # (n, C) prediction sets; (n, 0) for tasks without
    threshold: Float64  # (n,)
    weights: tuple[str, ...]  # (n,) which members judged


def read_predictions(path: Path, unit: str = "slide_id") -> list[Prediction]:
    """The rows of predictions.csv, or with ``unit`` patient_id of patients.csv, in their order.

    Raises ``ArtifactError`` where the file is missing, damaged, or of an earlier version of predict.
    """
    if not path.exists():
        raise ArtifactError(f"{path} is not there; run `wsi predict` first")
    header, rows = read_csv(path)
    tasks = {row[header.index("task")] for row in rows if "task" in header}
    needed = [unit, *_NEEDED, *(column for task in sorted(tasks) for column in _OF_TASK.get(task, ()))]
    if missing := [name for name in needed if name not in header]:
        raise ArtifactError(f"{path} has no column {missing[0]!r}; delete it and run `wsi predict` again")
    try:
        return [_prediction(dict(zip(header, row, strict=True)), unit) for row in rows]
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete it and run `wsi predict` again") from error


def labels_of(text: str) -> list[str]:
    """The classes of a multilabel slide; ``-`` stands for none of them."""
    return [name for part in text.split(LABEL_SEPARATOR) if (name := part.strip()) not in ("", "-")]


def scored(predictions: Sequence[Prediction], model: str) -> Scored | None:
    """What can be measured of ``model``; None where no row of it is labelled and held out."""
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
        sets=np.array([[c in p.members for c in classes if with_sets] for p in usable], np.bool_),
        threshold=np.array([p.threshold for p in usable], np.float64),
        weights=tuple(p.weights for p in usable),
    )


def left_out(predictions: Sequence[Prediction], model: str, what: str) -> list[str]:
    """Why rows of ``model`` are not measured, one line for each reason; ``what``: slides or patients."""
    reasons = Counter(p.reason for p in predictions if p.model == model and p.reason)
    if what == "patients" and _NO_LABEL in reasons:
        reasons["no label, or slides with different labels"] = reasons.pop(_NO_LABEL)
    return [f"{model}: {count} of its {what} left out: {reason}" for reason, count in sorted(reasons.items())]


def _prediction(row: Mapping[str, str], unit: str) -> Prediction:
    task = row["task"]
    if task not in _OF_TASK:
        raise ValueError(f"unknown task {task!r}")
    if task in ("classification", "multilabel"):
        outcome, calibrated = _numbers(row, PROBABILITY), _numbers(row, CALIBRATED)
        if list(outcome) != list(calibrated) or not outcome:
            raise ValueError("its columns prob_… and calibrated_… do not name the same classes")
    else:
        column = "value" if task == "regression" else "risk"
        outcome, calibrated = {column: float(row[column])}, {}
    followed = task == "survival" and row["time"] and row["event"]
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
        members=tuple(row.get("set", "").split(LABEL_SEPARATOR)),
        followed=(float(row["time"]), float(row["event"])) if followed else None,
    )


def _numbers(row: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(text) for name, text in row.items() if name.startswith(prefix) and text}


def _label_number(label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"the label {label!r} is no number")
    return value
