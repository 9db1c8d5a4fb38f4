"""Every member's own logits for one bag, heard once and kept beside the slide's row: patients are judged from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import PredictConfig
from ..embed.device import pick_device
from ..errors import ArtifactError, SlideError
from ..store import read_bag
from ..train.inference import cpu_threads, fault
from ..train.table import number, read_table, table
from ..types import FeatureBag, Float64, SlideRow
from . import weights_id
from .members import card, dropout_logits, load_members, member_logits

Logits = tuple[Float64, Float64]  # of the members (M, C), and of their passes with dropout (K, C)


@dataclass(frozen=True)
class Jury:
    """Who judges one slide in the name of one model."""

    model: str  # label
    members: tuple[Path, ...]
    held_out: bool  # whether none of them has seen the patient


def whole_bag(path: Path) -> FeatureBag:
    """A bag that can be judged. Raises ``SlideError`` where it is empty or holds features that are no numbers."""
    bag = read_bag(path)
    if reason := fault(bag):
        raise SlideError(f"the bag {path} {reason}")
    return bag


def hear(juries: Sequence[Jury], bags: Sequence[FeatureBag], section: PredictConfig) -> list[Logits]:
    """Each jury's logits of the one bag that ``bags`` make. One CPU thread: equal bytes on any machine's share."""
    device = str(pick_device(section.device))
    heard = []
    with cpu_threads(1):
        for jury in juries:
            members = load_members(jury.members, device)
            heard.append(
                (member_logits(members, bags, device), dropout_logits(members, bags, device, section.mc_dropout))
            )
    return heard


def voices_path(output: Path) -> Path:
    """Where the logits behind ``slides/<slide_id>.csv`` stand."""
    return output.parent.parent / "members" / output.name


def voices_table(juries: Sequence[Jury], heard: Sequence[Logits]) -> str:
    """model, member (as in the folder's order), pass (whole or dropout), and a column a logit, to the last bit."""
    classes = card(juries[0].members[0]).classes
    rows = []
    for jury, (logits, dropout) in zip(juries, heard, strict=True):
        for kind, part in (("whole", logits), ("dropout", dropout)):
            per_member = len(part) // len(jury.members)
            rows += [[jury.model, i // per_member, kind, *map(repr, row.tolist())] for i, row in enumerate(part)]
    return table(("model", "member", "pass", *(f"logit_{c}" for c in classes)), rows)


def read_voices(path: Path) -> dict[str, Logits]:
    """model -> its members' logits, as ``voices_table`` wrote them."""
    header, rows = read_table(path)
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


def who_cells(slide: SlideRow, label: str, jury: Jury, *more: object) -> list[object]:
    """One row of ``who_columns``. ``label``: of the slide, or of its patient."""
    cards = [card(folder) for folder in jury.members]
    task = cards[0].task
    event = "" if slide.event is None else int(slide.event)
    followed = [number(slide.time), event] if task == "survival" else []
    weights = weights_id(c.weights_sha256 for c in cards)
    held_out = str(jury.held_out).lower()
    return [slide.patient_id, *more, label, *followed, jury.model, task, len(cards), weights, held_out]
