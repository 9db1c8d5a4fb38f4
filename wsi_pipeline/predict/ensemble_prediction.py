"""Predictions of an ensemble from its members' logits, computed the same way for slides and patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..aggregate.checkpoint import ModelCard
from ..config import PredictConfig
from ..csvtable import format_number
from ..outcome import outcome, outcome_columns
from ..project import ABSTAIN, LABEL_SEPARATOR
from ..types import Bool, Float64
from .conformal import prediction_set
from .uncertainty import entropies

DIGITS = 6  # decimals of the output; decisions are made on the rounded numbers, so that they can be verified
LABEL_THRESHOLD = 0.5  # probability from which on a multilabel class is predicted


@dataclass(frozen=True, eq=False)
class MemberOutputs:
    """Outputs of the M members of an ensemble for one bag: probabilities, values or risks, see ``outcome``."""

    plain: Float64  # (M, C)
    calibrated: Float64  # (M, C) after each member's temperature; equal to ``plain`` where it has none
    dropout: Float64  # (K, C) further passes with dropout, for the uncertainty only; K may be 0


@dataclass(frozen=True, eq=False)
class EnsemblePrediction:
    """An ensemble's prediction for one slide or patient."""

    task: str
    classes: tuple[str, ...]  # names of the outputs; ("value",) for regression, ("risk",) for survival
    outcome: Float64  # (C,) mean over the members, rounded to the decimals of the output
    calibrated: Float64  # (C,)
    threshold: float | None  # on the probability of the second of two classes; None otherwise
    entropy: float  # total uncertainty in nats; NaN for tasks without probabilities
    aleatoric: float  # nats; NaN for tasks without probabilities
    epistemic: float  # nats, mutual information; for tasks without probabilities the variance over members
    in_set: Bool | None  # (C,) classes of the prediction set; classification only

    @property
    def predicted(self) -> int:
        """Class index: with a threshold, 1 where its probability reaches it, else 0; without, the most probable."""
        if self.threshold is None:
            return int(self.outcome.argmax())
        return int(self.outcome[1] >= self.threshold)

    def decision(self, abstain: bool) -> str:
        """Name of the predicted class, or for multilabel the classes with probability 0.5 or more, joined.

        Empty for regression and survival. With ``abstain``, the word "abstain" where the prediction set does not
        consist of exactly one class.
        """
        if self.task == "multilabel":
            present = self.outcome >= LABEL_THRESHOLD
            return LABEL_SEPARATOR.join(c for c, has in zip(self.classes, present, strict=True) if has) or "-"
        if self.task != "classification":
            return ""
        uncertain = self.in_set is not None and int(self.in_set.sum()) != 1
        return ABSTAIN if abstain and uncertain else self.classes[self.predicted]


def member_outputs(cards: Sequence[ModelCard], logits: Float64, dropout: Float64) -> MemberOutputs:
    """Convert logits to probabilities, values or risks.

    Parameters
    ----------
    cards : M model cards, in the order of the members
    logits : array (M, C)
    dropout : array (K, C)
        Logits of passes with dropout, member by member; K is a multiple of M and may be 0.
    """
    passes = len(dropout) // len(cards)
    of_passes = [_outcomes(c, dropout[i * passes : (i + 1) * passes]) for i, c in enumerate(cards)]
    return MemberOutputs(
        np.stack([_outcomes(c, row) for c, row in zip(cards, logits, strict=True)]),
        np.stack([_outcomes(c, row, c.temperature or 1.0) for c, row in zip(cards, logits, strict=True)]),
        np.concatenate(of_passes),
    )


def _outcomes(of_model: ModelCard, logits: Float64, temperature: float = 1.0) -> Float64:
    return outcome(of_model.task, logits, temperature=temperature, scale=of_model.scale)


def mean_member_outputs(of_slides: Sequence[MemberOutputs]) -> MemberOutputs:
    """Each member's mean over the slides of a patient."""
    return MemberOutputs(
        np.mean([slide.plain for slide in of_slides], axis=0),
        np.mean([slide.calibrated for slide in of_slides], axis=0),
        np.mean([slide.dropout for slide in of_slides], axis=0),
    )


def combine_members(cards: Sequence[ModelCard], members: MemberOutputs, section: PredictConfig) -> EnsemblePrediction:
    """The ensemble's prediction: the unweighted mean of its members, with uncertainty and prediction set.

    Parameters
    ----------
    cards : M model cards, in the order of the members
    members : MemberOutputs
    section : PredictConfig
        ``alpha`` is used.

    Returns
    -------
    EnsemblePrediction
        The threshold is the mean of the members' thresholds, None unless all have one.
    """
    task, all_passes = cards[0].task, np.concatenate([members.plain, members.dropout])
    thresholds = [c.threshold for c in cards if c.threshold is not None]
    in_set = None
    if task in ("classification", "multilabel"):
        total, aleatoric, epistemic = entropies(all_passes, multilabel=task == "multilabel")
        if task == "classification":
            in_set = prediction_set(members.calibrated, [c.calibration for c in cards], section.alpha)
    else:
        total, aleatoric, epistemic = float("nan"), float("nan"), float(all_passes[:, 0].var())
    return EnsemblePrediction(
        task=task,
        classes=cards[0].classes,
        outcome=members.plain.mean(axis=0).round(DIGITS),
        calibrated=members.calibrated.mean(axis=0).round(DIGITS),
        threshold=round(float(np.mean(thresholds)), DIGITS) if len(thresholds) == len(cards) else None,
        entropy=total,
        aleatoric=aleatoric,
        epistemic=epistemic,
        in_set=in_set,
    )


def columns(task: str, classes: Sequence[str]) -> list[str]:
    """Names of the columns of a prediction in the output tables, see ``cells``."""
    common = ["threshold", "predicted", *outcome_columns(task, classes)]
    if task not in ("classification", "multilabel"):
        return [*common, "epistemic"]
    certainty = [*(f"calibrated_{c}" for c in classes), "entropy", "aleatoric", "epistemic"]
    return [*common, *certainty, *(["set"] if task == "classification" else [])]


def cells(prediction: EnsemblePrediction, abstain: bool) -> list[object]:
    """The values of ``columns`` for one prediction; ``abstain`` as in ``EnsemblePrediction.decision``."""
    outcome = map(format_number, prediction.outcome)
    common = [format_number(prediction.threshold), prediction.decision(abstain), *outcome]
    if prediction.task not in ("classification", "multilabel"):
        return [*common, format_number(prediction.epistemic)]
    certainty = [*prediction.calibrated, prediction.entropy, prediction.aleatoric, prediction.epistemic]
    row: list[object] = [*common, *map(format_number, certainty)]
    if prediction.in_set is None:
        return row
    inside = (c for c, is_in in zip(prediction.classes, prediction.in_set, strict=True) if is_in)
    return [*row, LABEL_SEPARATOR.join(inside)]
