"""Per-member logits, computed once and stored; patient predictions are computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..aggregate.inference import cpu_threads, fault
from ..config import PredictConfig
from ..csvtable import csv_text, format_number, read_csv
from ..device import pick_device
from ..errors import ArtifactError, SlideError
from ..store import read_bag
from ..types import FeatureBag, Float64, SlideRow
from . import weights_id
from .ensembles import card, dropout_logits, load_members, member_logits

Logits = tuple[Float64, Float64]  # of the members (M, C), and of their passes with dropout (K, C)


@dataclass(frozen=True)
class Ensemble:
    """The members of one model that predict a slide, see ``held_out_members``."""

    model: str  # label of the model
    members: tuple[Path, ...]  # folders
    held_out: bool  # whether none of them was trained on the patient


def whole_bag(path: Path) -> FeatureBag:
    """Read a bag for prediction. Raises ``SlideError`` where it is empty or has features that are not finite."""
    bag = read_bag(path)
    if reason := fault(bag):
        raise SlideError(f"the bag {path} {reason}")
    return bag


def compute_member_logits(
    ensembles: Sequence[Ensemble], bags: Sequence[FeatureBag], section: PredictConfig
) -> list[Logits]:
    """Logits of every ensemble for one bag.

    Parameters
    ----------
    ensembles : sequence of Ensemble
    bags : sequence of FeatureBag
        The feature bags of the slides that form the bag together.
    section : PredictConfig
        ``device`` and ``mc_dropout`` are used.

    Returns
    -------
    list of (array (M, C), array (K, C))
        Per ensemble the logits of its members, and of their passes with dropout. Computed on one CPU thread, so that
        the result does not depend on the number of cores.

    Raises
    ------
    ArtifactError
        Where a bag does not fit a model, or a model cannot be loaded.
    """
    device = str(pick_device(section.device))
    logits_of_each = []
    with cpu_threads(1):
        for ensemble in ensembles:
            members = load_members(ensemble.members, device)
            logits_of_each.append(
                (member_logits(members, bags, device), dropout_logits(members, bags, device, section.mc_dropout))
            )
    return logits_of_each


def member_logits_path(output: Path) -> Path:
    """Path of the logits from which ``slides/<slide_id>.csv`` was computed."""
    return output.parent.parent / "members" / output.name


def member_logits_table(ensembles: Sequence[Ensemble], logits_of_each: Sequence[Logits]) -> str:
    """The logits as CSV text, without rounding: model, member (index), pass (whole or dropout), a column per logit."""
    classes = card(ensembles[0].members[0]).classes
    rows = []
    for ensemble, (logits, dropout) in zip(ensembles, logits_of_each, strict=True):
        for kind, part in (("whole", logits), ("dropout", dropout)):
            per_member = len(part) // len(ensemble.members)
            rows += [[ensemble.model, i // per_member, kind, *map(repr, row.tolist())] for i, row in enumerate(part)]
    return csv_text(("model", "member", "pass", *(f"logit_{c}" for c in classes)), rows)


def read_member_logits(path: Path) -> dict[str, Logits]:
    """Read what ``member_logits_table`` wrote: model -> logits. Raises ``ArtifactError`` where the file is damaged."""
    header, rows = read_csv(path)
    outputs = len(header) - 3
    found: dict[str, Logits] = {}
    try:
        for model in dict.fromkeys(row[0] for row in rows):
            whole, dropout = (
                [[float(v) for v in row[3:]] for row in rows if (row[0], row[2]) == (model, kind)]
                for kind in ("whole", "dropout")
            )
            found[model] = np.array(whole).reshape(-1, outputs), np.array(dropout).reshape(-1, outputs)
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run `wsi predict` again") from error
    return found


def case_columns(task: str, *more: str) -> list[str]:
    """Columns before the prediction: patient_id, ``more``, label, time and event (survival only), and the ensemble."""
    follow_up = ["time", "event"] if task == "survival" else []
    return ["patient_id", *more, "label", *follow_up, "model", "task", "members", "weights", "held_out"]


def case_cells(slide: SlideRow, label: str, ensemble: Ensemble, *more: object) -> list[object]:
    """The values of ``case_columns``. ``label``: that of the slide, or of its patient."""
    cards = [card(folder) for folder in ensemble.members]
    task = cards[0].task
    event = "" if slide.event is None else int(slide.event)
    follow_up = [format_number(slide.time), event] if task == "survival" else []
    weights = weights_id(c.weights_sha256 for c in cards)
    held_out = str(ensemble.held_out).lower()
    return [slide.patient_id, *more, label, *follow_up, ensemble.model, task, len(cards), weights, held_out]
