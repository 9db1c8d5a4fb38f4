"""Predictions for patients: from a joint bag where the model was trained on such, else the mean over the slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import Provenance, write_text_with_provenance
from ..config import PredictConfig
from ..csvtable import csv_text
from ..types import SlideRow
from .ensemble_prediction import cells, columns, combine_members, mean_member_outputs, member_outputs
from .ensembles import card
from .member_logits import (
    Ensemble,
    case_cells,
    case_columns,
    compute_member_logits,
    member_logits_table,
    read_member_logits,
    whole_bag,
)


@dataclass(frozen=True)
class Patient:
    """The slides of one patient that have predictions, and the ensembles that predict the patient."""

    slides: tuple[SlideRow, ...]
    ensembles: tuple[Ensemble, ...]
    joint: Path | None  # logits of the joint bag; None: the mean over the slides is used
    member_logits: tuple[Path, ...]  # logits of each slide

    @property
    def label(self) -> str:
        """The label that all slides share; empty where they differ, since it is unknown which one is the patient's."""
        found = {slide.label or "" for slide in self.slides}
        return found.pop() if len(found) == 1 else ""


def compute_joint_logits(
    ensembles: Sequence[Ensemble], bags: Sequence[Path], section: PredictConfig, *, output: Path, provenance: Provenance
) -> int:
    """Write every member's logits for the joint bag of a patient.

    Parameters
    ----------
    ensembles : sequence of Ensemble
    bags : sequence of Path
        The feature bags of the patient's slides.
    section : PredictConfig
    output : Path

    Returns
    -------
    int
        Number of patches in the joint bag.

    Raises
    ------
    SlideError
        Where a bag is empty or has features that are not finite.
    ArtifactError
        Where a bag does not fit a model.
    """
    whole = [whole_bag(path) for path in bags]
    table = member_logits_table(ensembles, compute_member_logits(ensembles, whole, section))
    write_text_with_provenance(output, table, provenance)
    return sum(len(bag.grid) for bag in whole)


def join_patients(patients: Sequence[Patient], section: PredictConfig, *, output: Path, provenance: Provenance) -> int:
    """Write ``patients.csv``: one row per patient and model, in the order of ``patients``. Returns how many."""
    rows: list[list[object]] = []
    header: list[str] = []
    for patient in patients:
        paths = [patient.joint] if patient.joint else patient.member_logits
        logits_of_each = [read_member_logits(path) for path in paths]
        for ensemble in patient.ensembles:
            cards = [card(folder) for folder in ensemble.members]
            outputs = [member_outputs(cards, *logits[ensemble.model]) for logits in logits_of_each]
            prediction = combine_members(cards, mean_member_outputs(outputs), section)
            header = [*case_columns(prediction.task, "slides"), *columns(prediction.task, prediction.classes)]
            case = case_cells(patient.slides[0], patient.label, ensemble, len(patient.slides))
            rows.append([*case, *cells(prediction, section.abstain)])
    write_text_with_provenance(output, csv_text(header, rows), provenance)
    return len(rows)
