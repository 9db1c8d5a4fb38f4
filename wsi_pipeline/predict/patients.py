"""Patients: a joint bag where the model was trained on such, else each member's mean over the patient's slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import PredictConfig
from ..files import Provenance, write_made_text
from ..train.table import table
from ..types import SlideRow
from .members import card
from .verdict import cells, columns, mean_votes, verdict, votes
from .voices import Jury, hear, read_voices, voices_table, who_cells, who_columns, whole_bag


@dataclass(frozen=True)
class Patient:
    """One patient's slides that could be judged, and who judges them."""

    slides: tuple[SlideRow, ...]
    juries: tuple[Jury, ...]
    joint: Path | None  # logits of the joint bag; None: the mean over the slides counts
    voices: tuple[Path, ...]  # logits of each slide

    @property
    def label(self) -> str:
        """What all the slides say; empty where they differ, since nobody said which counts for the patient."""
        found = {slide.label or "" for slide in self.slides}
        return found.pop() if len(found) == 1 else ""


def hear_joint(juries: Sequence[Jury], bags: Sequence[Path], section: PredictConfig, output: Path, key: str) -> int:
    """Write every member's logits of the patient's joint bag; returns its patches."""
    whole = [whole_bag(path) for path in bags]
    write_made_text(output, voices_table(juries, hear(juries, whole, section)), Provenance.of(key, "predict"))
    return sum(len(bag.grid) for bag in whole)


def join_patients(patients: Sequence[Patient], section: PredictConfig, output: Path, key: str) -> int:
    """Write ``patients.csv``, in the manifest's order, models side by side. Returns its rows."""
    rows: list[list[object]] = []
    header: list[str] = []
    for patient in patients:
        heard = [read_voices(path) for path in ([patient.joint] if patient.joint else patient.voices)]
        for jury in patient.juries:
            cards = [card(folder) for folder in jury.members]
            said = verdict(cards, mean_votes([votes(cards, *voices[jury.model]) for voices in heard]), section)
            header = [*who_columns(said.task, "slides"), *columns(said.task, said.classes)]
            who = who_cells(patient.slides[0], patient.label, jury, len(patient.slides))
            rows.append([*who, *cells(said, section.abstain)])
    write_made_text(output, table(header, rows), Provenance.of(key, "predict"))
    return len(rows)
