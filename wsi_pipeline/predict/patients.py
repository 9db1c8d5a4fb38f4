"""Patients: a joint bag where the model was trained on such, else each member's mean over the patient's slides."""

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
    compute_member_logits,
    member_logits_table,
    read_member_logits,
    who_cells,
    who_columns,
    whole_bag,
)


@dataclass(frozen=True)
class Patient:
    """One patient's slides that could be judged, and the ensembles that predict for them."""

    slides: tuple[SlideRow, ...]
    ensembles: tuple[Ensemble, ...]
    joint: Path | None  # logits of the joint bag; None: the mean over the slides counts
    member_logits: tuple[Path, ...]  # logits of each slide

    @property
    def label(self) -> str:
        """What all the slides say; empty where they differ, since nobody said which counts for the patient."""
        found = {slide.label or "" for slide in self.slides}
        return found.pop() if len(found) == 1 else ""


def compute_joint_logits(
    ensembles: Sequence[Ensemble], bags: Sequence[Path], section: PredictConfig, output: Path, key: str
) -> int:
    """Write every member's logits of the patient's joint bag; returns its patches."""
    whole = [whole_bag(path) for path in bags]
    write_text_with_provenance(
        output,
        member_logits_table(ensembles, compute_member_logits(ensembles, whole, section)),
        Provenance.of(key, "predict"),
    )
    return sum(len(bag.grid) for bag in whole)


def join_patients(patients: Sequence[Patient], section: PredictConfig, output: Path, key: str) -> int:
    """Write ``patients.csv``, in the manifest's order, models side by side. Returns its rows."""
    rows: list[list[object]] = []
    header: list[str] = []
    for patient in patients:
        paths = [patient.joint] if patient.joint else patient.member_logits
        logits_of_each = [read_member_logits(path) for path in paths]
        for ensemble in patient.ensembles:
            cards = [card(folder) for folder in ensemble.members]
            outputs = [member_outputs(cards, *logits[ensemble.model]) for logits in logits_of_each]
            said = combine_members(cards, mean_member_outputs(outputs), section)
            header = [*who_columns(said.task, "slides"), *columns(said.task, said.classes)]
            who = who_cells(patient.slides[0], patient.label, ensemble, len(patient.slides))
            rows.append([*who, *cells(said, section.abstain)])
    write_text_with_provenance(output, csv_text(header, rows), Provenance.of(key, "predict"))
    return len(rows)
