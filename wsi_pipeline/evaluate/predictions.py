"""What predict wrote, as arrays for each model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ArtifactError
from ..train.table import read_table
from ..types import Float64, Int64

PROBABILITY = "prob_"
_NEEDED = {"slide_id", "patient_id", "label", "model", "weights", "held_out", "threshold"}


@dataclass(frozen=True)
class Prediction:
    """One slide and model."""

    slide_id: str
    patient_id: str
    label: str
    model: str
    weights: str  # which members judged, see ``predict.weights_id``
    held_out: bool  # no member that judged it has seen the patient
    threshold: float  # NaN: none
    probabilities: dict[str, float]  # class -> probability, in the model's order

    @property
    def usable(self) -> bool:
        """Whether it says something of how good the model is."""
        return self.held_out and self.label in self.probabilities


@dataclass(frozen=True, eq=False)
class Scored:
    """The n labelled, held-out slides of one model."""

    model: str
    classes: tuple[str, ...]
    patients: tuple[str, ...]  # (n,)
    truth: Int64  # (n,) index into classes
    probabilities: Float64  # (n, C)
    threshold: Float64  # (n,)


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of predictions.csv, in its order."""
    header, rows = read_table(path)
    if missing := sorted(_NEEDED - set(header)):
        raise ArtifactError(f"{path} has no column {missing[0]!r}; delete it and run `wsi predict` again")
    return [_prediction(dict(zip(header, row, strict=True))) for row in rows]


def _prediction(row: dict[str, str]) -> Prediction:
    probabilities = {
        name.removeprefix(PROBABILITY): float(text)
        for name, text in row.items()
        if name.startswith(PROBABILITY) and text
    }
    return Prediction(
        slide_id=row["slide_id"],
        patient_id=row["patient_id"],
        label=row["label"],
        model=row["model"],
        weights=row["weights"],
        held_out=row["held_out"].lower() == "true",
        threshold=float(row["threshold"] or "nan"),
        probabilities=probabilities,
    )


def scored(predictions: Sequence[Prediction], model: str) -> Scored | None:
    """What can be measured of ``model``; None where no slide of it is labelled and held out."""
    usable = [p for p in predictions if p.model == model and p.usable]
    if not usable:
        return None
    classes = tuple(usable[0].probabilities)
    return Scored(
        model=model,
        classes=classes,
        patients=tuple(p.patient_id for p in usable),
        truth=np.array([classes.index(p.label) for p in usable], np.int64),
        probabilities=np.array([[p.probabilities[name] for name in classes] for p in usable], np.float64),
        threshold=np.array([p.threshold for p in usable], np.float64),
    )


def left_out(predictions: Sequence[Prediction], model: str) -> list[str]:
    """Why slides of ``model`` are not measured, one line for each reason."""
    reasons = Counter(_reason(p) for p in predictions if p.model == model and not p.usable)
    return [f"{model}: {count} of its slides left out: {reason}" for reason, count in sorted(reasons.items())]


def _reason(prediction: Prediction) -> str:
    if not prediction.label:
        return "no label in the manifest"
    if prediction.label not in prediction.probabilities:
        return f"the label {prediction.label!r} is no class of the model"
    return "every member has seen the patient in training"
