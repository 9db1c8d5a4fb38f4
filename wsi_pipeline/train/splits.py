"""Which slides a fold trains on, stops by, and is tested on. No patient stands on two sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import TrainConfig
from ..errors import ConfigError
from ..rng import generator_for, seed_from
from ..types import SlideRow
from .labels import has_target, strata


@dataclass(frozen=True)
class Split:
    """Slide ids of one fold's three parts, each sorted. ``val`` serves early stopping and the threshold."""

    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def labelled(slides: Iterable[SlideRow], task: str = "classification") -> tuple[SlideRow, ...]:
    """The slides that teach something, sorted by slide_id; the others are only predicted.

    Raises ``ConfigError`` where there is none, or where a slide to learn from says nothing.
    """
    column = "time and event" if task == "survival" else "label"
    ordered = sorted(slides, key=lambda s: s.slide_id)
    for slide in ordered:
        if not has_target(slide, task) and slide.split in {"train", "val"}:
            raise ConfigError(
                f"slide {slide.slide_id!r} has split {slide.split} but no {column}; give it one in slides:"
            )
    kept = tuple(s for s in ordered if has_target(s, task))
    if not kept:
        raise ConfigError(
            f"there is no labelled slide to train on; fill the manifest's {column} column, or give predict.model"
        )
    return kept


def make_splits(slides: Sequence[SlideRow], config: TrainConfig, seed: int) -> tuple[Split, ...]:
    """The folds of one seed over labelled ``slides``; the order of ``slides`` does not matter.

    One fold as the manifest's ``split`` column says, where any slide has one; else ``train.folds`` folds of
    patients, or of whole sites (Howard et al., Nature Communications 2021), stratified by what the task teaches, so
    that every slide is tested once. Raises ``ConfigError``.
    """
    rows = sorted(slides, key=lambda s: s.slide_id)
    kinds = strata(rows, config)
    given = any(row.split for row in rows)
    parts = [_given(rows)] if given else _k_folds(rows, kinds, config, seed)
    splits = []
    for fold, (train, val, test) in enumerate(parts):
        if not val:
            train, val = _without_validation(train, kinds, config.val_fraction, generator_for("val", seed, fold))
        splits.append(Split(fold, *(tuple(r.slide_id for r in part) for part in (train, val, test))))
        _check(train, val, test, config.task, {str(r.label) for r in rows}, given)
    return tuple(splits)


def site_of(slide: SlideRow) -> str:
    """Where the patient was treated: the manifest's site, else the tissue-source site of a TCGA barcode."""
    barcode = slide.patient_id.split("-")
    if slide.site or (len(barcode) >= 3 and barcode[0] == "TCGA"):
        return slide.site or barcode[1]
    raise ConfigError(
        f"train.site_preserving: slide {slide.slide_id!r} has no site and no TCGA barcode as patient_id; "
        f"fill the manifest's site column"
    )


Rows = list[SlideRow]


def _given(rows: Rows) -> tuple[Rows, Rows, Rows]:
    for row in rows:
        if not row.split:
            raise ConfigError(
                f"slide {row.slide_id!r} has a label but no split, while others have one; give it train, val or test"
            )
    train, val, test = ([r for r in rows if r.split == part] for part in ("train", "val", "test"))
    return train, val, test


def _k_folds(rows: Rows, kinds: Mapping[str, str], config: TrainConfig, seed: int) -> list[tuple[Rows, Rows, Rows]]:
    """Train and test parts; the validation part is still to be taken."""
    from sklearn.model_selection import StratifiedGroupKFold

    _check_patients(rows, kinds, config)
    groups = [site_of(r) if config.site_preserving else r.patient_id for r in rows]
    if len(set(groups)) < config.folds:
        what = "site(s)" if config.site_preserving else "patient(s)"
        raise ConfigError(
            f"there are {len(set(groups))} {what}, too few for {config.folds} folds; set fewer train.folds"
        )
    dealer = StratifiedGroupKFold(config.folds, shuffle=True, random_state=seed_from("folds", seed) % 2**32)
    parts = dealer.split(rows, [kinds[r.slide_id] for r in rows], groups)
    return [([rows[i] for i in train], [], [rows[i] for i in test]) for train, test in parts]


def _check_patients(rows: Rows, kinds: Mapping[str, str], config: TrainConfig) -> None:
    """Every class has a patient for each fold; of other tasks, the slides that are few were joined before."""
    if config.task != "classification":
        return
    patients: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        patients[kinds[row.slide_id]].add(row.patient_id)
    label, fewest = min(((label, len(ids)) for label, ids in patients.items()), key=lambda item: (item[1], item[0]))
    if fewest < config.folds:
        remedy = f"set train.folds={fewest}" if fewest > 1 else "label slides of more patients, or give splits"
        raise ConfigError(f"class {label!r} has {fewest} patient(s), too few for {config.folds} folds; {remedy}")


def _without_validation(
    train: Rows, kinds: Mapping[str, str], fraction: float, generator: np.random.Generator
) -> tuple[Rows, Rows]:
    """Takes ``fraction`` of the patients of each stratum away from ``train``: at least one, and never the last."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in train:
        labels[row.patient_id].add(kinds[row.slide_id])
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient in sorted(labels):
        groups[tuple(sorted(labels[patient]))].append(patient)
    taken: set[str] = set()
    for stratum in sorted(groups):
        patients = groups[stratum]
        count = min(len(patients) - 1, max(1, round(fraction * len(patients))))
        taken.update(patients[i] for i in generator.choice(len(patients), count, replace=False))
    return [r for r in train if r.patient_id not in taken], [r for r in train if r.patient_id in taken]


def _check(train: Rows, val: Rows, test: Rows, task: str, classes: set[str], given: bool) -> None:
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
    if task == "survival" and not all(any(r.event for r in part) for part in (train, val)):
        raise ConfigError(f"no event was seen in a fold's training or validation part; {remedy}")
    if task == "classification" and (missing := sorted(classes - {str(r.label) for r in train})):
        raise ConfigError(f"no training slide of a fold is labelled {missing[0]!r}; {remedy}")
    if not val:
        raise ConfigError(f"no patient is left for validation; {remedy}")
