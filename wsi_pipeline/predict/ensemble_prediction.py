"""What an ensemble says, from its members' logits: numbers only, so that slides and patients are judged alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..aggregate.checkpoint import ModelCard
from ..config import PredictConfig
from ..csvtable import format_number
from ..outcome import outcome, outcome_columns
from ..project import LABEL_SEPARATOR
from ..types import Bool, Float64
from .conformal import prediction_set
from .uncertainty import entropies

ABSTAIN = "abstain"
DIGITS = 6  # of what is written; decisions are made on the numbers that can be read
EVEN = 0.5  # a multilabel class is named from here on


@dataclass(frozen=True, eq=False)
class MemberOutputs:
    """What M members say of one bag, one row each."""

    plain: Float64  # (M, C) probabilities, values or risks
    calibrated: Float64  # (M, C) after each member's temperature; as ``plain`` where it has none
    dropout: Float64  # (K, C) further passes with dropout, for the uncertainty only; K may be 0


@dataclass(frozen=True, eq=False)
class EnsemblePrediction:
    """What an ensemble says of one slide or patient."""

    task: str
    classes: tuple[str, ...]
    outcome: Float64  # (C,) mean of the members', rounded to what is written
    calibrated: Float64  # (C,)
    threshold: float | None  # on the positive class of two; None elsewhere
    entropy: float  # nats; NaN for tasks without probabilities
    aleatoric: float
    epistemic: float  # mutual information; the variance over members for tasks without probabilities
    members: Bool | None  # (C,) which classes the prediction set holds; classification only

    @property
    def predicted(self) -> int:
        """Class index: of two, the last where its probability reaches the threshold; of more, the likeliest."""
        if self.threshold is None:
            return int(self.outcome.argmax())
        return int(self.outcome[1] >= self.threshold)

    def decision(self, abstain: bool) -> str:
        """The class, or the classes from one half on; with ``abstain``, no class where the set is not just one."""
        if self.task == "multilabel":
            return LABEL_SEPARATOR.join(c for c, p in zip(self.classes, self.outcome, strict=True) if p >= EVEN) or "-"
        if self.task != "classification":
            return ""
        unsure = self.members is not None and int(self.members.sum()) != 1
        return ABSTAIN if abstain and unsure else self.classes[self.predicted]


def member_outputs(cards: Sequence[ModelCard], logits: Float64, dropout: Float64) -> MemberOutputs:
    """Logits (M, C) of the members and (K, C) of passes with dropout, K a multiple of M, member by member."""
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
    """A patient's votes: each member's mean over the slides."""
    return MemberOutputs(
        np.mean([v.plain for v in of_slides], axis=0),
        np.mean([v.calibrated for v in of_slides], axis=0),
        np.mean([v.dropout for v in of_slides], axis=0),
    )


def combine_members(cards: Sequence[ModelCard], said: MemberOutputs, section: PredictConfig) -> EnsemblePrediction:
    """Join the members' votes; all members weigh the same."""
    task, everyone = cards[0].task, np.concatenate([said.plain, said.dropout])
    thresholds = [c.threshold for c in cards if c.threshold is not None]
    members = None
    if task in ("classification", "multilabel"):
        total, aleatoric, epistemic = entropies(everyone, multilabel=task == "multilabel")
        if task == "classification":
            members = prediction_set(said.calibrated, [c.calibration for c in cards], section.alpha)
    else:
        total, aleatoric, epistemic = float("nan"), float("nan"), float(everyone[:, 0].var())
    return EnsemblePrediction(
        task=task,
        classes=cards[0].classes,
        outcome=said.plain.mean(axis=0).round(DIGITS),
        calibrated=said.calibrated.mean(axis=0).round(DIGITS),
        threshold=round(float(np.mean(thresholds)), DIGITS) if len(thresholds) == len(cards) else None,
        entropy=total,
        aleatoric=aleatoric,
        epistemic=epistemic,
        members=members,
    )


def columns(task: str, classes: Sequence[str]) -> list[str]:
    """The columns that ``cells`` fills."""
    common = ["threshold", "predicted", *outcome_columns(task, classes)]
    if task not in ("classification", "multilabel"):
        return [*common, "epistemic"]
    certainty = [*(f"calibrated_{c}" for c in classes), "entropy", "aleatoric", "epistemic"]
    return [*common, *certainty, *(["set"] if task == "classification" else [])]


def cells(said: EnsemblePrediction, abstain: bool) -> list[object]:
    """One row of ``columns``."""
    common = [format_number(said.threshold), said.decision(abstain), *map(format_number, said.outcome)]
    if said.task not in ("classification", "multilabel"):
        return [*common, format_number(said.epistemic)]
    certainty = [*said.calibrated, said.entropy, said.aleatoric, said.epistemic]
    row: list[object] = [*common, *map(format_number, certainty)]
    if said.members is None:
        return row
    return [*row, LABEL_SEPARATOR.join(c for c, inside in zip(said.classes, said.members, strict=True) if inside)]
