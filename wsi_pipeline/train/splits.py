"""Which slides a fold trains on, stops by, and is tested on. No patient stands on two sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import TrainConfig
from ..errors import ConfigError
from ..types import SlideRow
from .sampling import entropy, stream


@dataclass(frozen=True)
class Split:
    """Slide ids of one fold's three parts, each sorted. ``val`` serves early stopping and the threshold."""

    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def labelled(slides: Iterable[SlideRow]) -> tuple[SlideRow, ...]:
    """The slides that have a label, sorted by slide_id; the others are only predicted.

    Raises ``ConfigError`` where there is none, or where a slide to learn from has none.
    """
    ordered = sorted(slides, key=lambda s: s.slide_id)
    for slide in ordered:
        if slide.label is None and slide.split in {"train", "val"}:
            raise ConfigError(f"slide {slide.slide_id!r} has split {slide.split} but no label; give it one in slides:")
    kept = tuple(s for s in ordered if s.label is not None)
    if not kept:
        raise ConfigError(
            "there is no labelled slide to train on; fill the manifest's label column, or give predict.model"
        )
    return kept


def class_order(slides: Iterable[SlideRow], configured: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in the order of the logits: ``train.classes``, or the labels sorted. The last of two is positive."""
    found = {str(s.label): s.slide_id for s in slides}
    classes = tuple(configured) if configured is not None else tuple(sorted(found))
    if len(set(classes)) < len(classes):
        raise ConfigError(f"train.classes names a class twice: {', '.join(classes)}")
    if outside := sorted(set(found) - set(classes)):
        raise ConfigError(
            f"slide {found[outside[0]]!r} has label {outside[0]!r}, which is not in train.classes "
            f"({', '.join(classes)}); add it there, or empty the label"
        )
    if len(classes) < 2:
        raise ConfigError(f"training needs two classes, but every label is {classes[0]!r}; label slides of another")
    return classes


def make_splits(slides: Sequence[SlideRow], config: TrainConfig, seed: int) -> tuple[Split, ...]:
    """The folds of one seed over labelled ``slides``; the order of ``slides`` does not matter.

    One fold as the manifest's ``split`` column says, where any slide has one; else ``train.folds`` folds of
    patients, stratified by label, so that every slide is tested once. Raises ``ConfigError``.
    """
    rows = sorted(slides, key=lambda s: s.slide_id)
    given = any(row.split for row in rows)
    parts = [_given(rows)] if given else _k_folds(rows, config.folds, seed)
    splits = []
    for fold, (train, val, test) in enumerate(parts):
        if not val:
            train, val = _without_validation(train, config.val_fraction, stream("val", seed, fold))
        splits.append(Split(fold, *(tuple(r.slide_id for r in part) for part in (train, val, test))))
        _check(train, val, test, {str(r.label) for r in rows}, given)
    return tuple(splits)


Rows = list[SlideRow]


def _given(rows: Rows) -> tuple[Rows, Rows, Rows]:
    for row in rows:
        if not row.split:
            raise ConfigError(
                f"slide {row.slide_id!r} has a label but no split, while others have one; give it train, val or test"
            )
    train, val, test = ([r for r in rows if r.split == part] for part in ("train", "val", "test"))
    return train, val, test


def _k_folds(rows: Rows, folds: int, seed: int) -> list[tuple[Rows, Rows, Rows]]:
    """Train and test parts; the validation part is still to be taken."""
    from sklearn.model_selection import StratifiedGroupKFold

    _check_patients(rows, folds)
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=entropy("folds", seed) % 2**32)
    labels, patients = [str(r.label) for r in rows], [r.patient_id for r in rows]
    return [
        ([rows[i] for i in train], [], [rows[i] for i in test]) for train, test in dealer.split(rows, labels, patients)
    ]


def _check_patients(rows: Rows, folds: int) -> None:
    patients: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        patients[str(row.label)].add(row.patient_id)
    label, fewest = min(((label, len(ids)) for label, ids in patients.items()), key=lambda item: (item[1], item[0]))
    if fewest < folds:
        remedy = f"set train.folds={fewest}" if fewest > 1 else "label slides of more patients, or give splits"
        raise ConfigError(f"class {label!r} has {fewest} patient(s), too few for {folds} folds; {remedy}")


def _without_validation(train: Rows, fraction: float, generator: np.random.Generator) -> tuple[Rows, Rows]:
    """Takes ``fraction`` of the patients of each label away from ``train``: at least one, and never the last."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in train:
        labels[row.patient_id].add(str(row.label))
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient in sorted(labels):
        strata[tuple(sorted(labels[patient]))].append(patient)
    taken: set[str] = set()
    for stratum in sorted(strata):
        patients = strata[stratum]
        count = min(len(patients) - 1, max(1, round(fraction * len(patients))))
        taken.update(patients[i] for i in generator.choice(len(patients), count, replace=False))
    return [r for r in train if r.patient_id not in taken], [r for r in train if r.patient_id in taken]


def _check(train: Rows, val: Rows, test: Rows, classes: set[str], given: bool) -> None:
    parts = {"train": train, "val": val, "test": test}
    where: dict[str, str] = {}
    for name, rows in parts.items():
        for row in rows:
            if where.setdefault(row.patient_id, name) != name:
                raise ConfigError(
                    f"patient {row.patient_id!r} has slides in {where[row.patient_id]} and in {name}; "
                    f"give all slides of a patient the same split"
                )
    remedy = "give more slides split train" if given else "set fewer train.folds, or label slides of more patients"
    if missing := sorted(classes - {str(r.label) for r in train}):
        raise ConfigError(f"no training slide of a fold is labelled {missing[0]!r}; {remedy}")
    if not val:
        raise ConfigError(f"no patient is left for validation; {remedy}")
