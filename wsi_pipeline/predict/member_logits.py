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
    """Who held_out_members one slide in the name of one model."""

    model: str  # label
    members: tuple[Path, ...]
    held_out: bool  # whether none of them has seen the patient


def whole_bag(path: Path) -> FeatureBag:
    """A bag that can be judged. Raises ``SlideError`` where it is empty or holds features that are no numbers."""
    bag = read_bag(path)
    if reason := fault(bag):
        raise SlideError(f"the bag {path} {reason}")
    return bag


def compute_member_logits(
    ensembles: Sequence[Ensemble], bags: Sequence[FeatureBag], section: PredictConfig
) -> list[Logits]:
    """Each ensemble's logits of the one bag that ``bags`` make. One CPU thread: equal bytes on any machine's share."""
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
    """Where the logits behind ``slides/<slide_id>.csv`` stand."""
    return output.parent.parent / "members" / output.name


def member_logits_table(ensembles: Sequence[Ensemble], logits_of_each: Sequence[Logits]) -> str:
    """model, member (as in the folder's order), pass (whole or dropout), and a column a logit, to the last bit."""
    classes = card(ensembles[0].members[0]).classes
    rows = []
    for ensemble, (logits, dropout) in zip(ensembles, logits_of_each, strict=True):
        for kind, part in (("whole", logits), ("dropout", dropout)):
            per_member = len(part) // len(ensemble.members)
            rows += [[ensemble.model, i // per_member, kind, *map(repr, row.tolist())] for i, row in enumerate(part)]
    return csv_text(("model", "member", "pass", *(f"logit_{c}" for c in classes)), rows)


def read_member_logits(path: Path) -> dict[str, Logits]:
    """model -> its members' logits, as ``member_logits_table`` wrote them."""
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


def who_columns(task: str, *more: str) -> list[str]:
    """patient_id, ``more``, label, what was followed, and how the judgement came about."""
    followed = ["time", "event"] if task == "survival" else []
    return ["patient_id", *more, "label", *followed, "model", "task", "members", "weights", "held_out"]


def who_cells(slide: SlideRow, label: str, ensemble: Ensemble, *more: object) -> list[object]:
    """One row of ``who_columns``. ``label``: of the slide, or of its patient."""
    cards = [card(folder) for folder in ensemble.members]
    task = cards[0].task
    event = "" if slide.event is None else int(slide.event)
    followed = [format_number(slide.time), event] if task == "survival" else []
    weights = weights_id(c.weights_sha256 for c in cards)
    held_out = str(ensemble.held_out).lower()
    return [slide.patient_id, *more, label, *followed, ensemble.model, task, len(cards), weights, held_out]
