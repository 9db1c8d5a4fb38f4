"""Split the labelled slides into training, validation and test parts, such that no patient is in two of them."""

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
    """Slide ids of the three parts of a fold, each sorted. ``val`` is for early stopping, threshold and calibration."""

    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def labelled(slides: Iterable[SlideRow], task: str = "classification") -> tuple[SlideRow, ...]:
    """The slides with a training target for ``task``, sorted by slide_id; the others are only predicted.

    Raises
    ------
    ConfigError
        Where no slide has a target, or a slide that the manifest assigns to training or validation has none.
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
    """The folds of one seed.

    Where the manifest has a ``split`` for any slide, there is one fold, with those splits. Else there are
    ``train.folds`` folds of patients, or of whole sites with ``train.site_preserving``, stratified by the task's
    target (see ``strata``), so that every slide is in one test part.

    Parameters
    ----------
    slides : sequence of SlideRow
        Labelled slides, in any order.
    config : TrainConfig
    seed : int

    Returns
    -------
    tuple of Split

    Raises
    ------
    ConfigError
        Where there are too few patients or sites, a part lacks a class, an event or any patient, a patient is in two
        parts, or only some slides have a split.

    Notes
    -----
    Site-preserving folds: Howard et al., Nature Communications 2021.
    """
    rows = sorted(slides, key=lambda s: s.slide_id)
    stratum_of = strata(rows, config)
    given = any(row.split for row in rows)
    parts = [_manifest_split(rows)] if given else _k_folds(rows, stratum_of, config, seed)
    splits = []
    for fold, (train, val, test) in enumerate(parts):
        if not val:
            train, val = _split_validation(train, stratum_of, config.val_fraction, generator_for("val", seed, fold))
        splits.append(Split(fold, *(tuple(r.slide_id for r in part) for part in (train, val, test))))
        _check(train, val, test, config.task, {str(r.label) for r in rows}, given)
    return tuple(splits)


def site_of(slide: SlideRow) -> str:
    """The site where the patient was treated: the manifest's, else the tissue-source site of a TCGA barcode.

    Raises ``ConfigError`` where the slide has neither.
    """
    barcode = slide.patient_id.split("-")
    if slide.site or (len(barcode) >= 3 and barcode[0] == "TCGA"):
        return slide.site or barcode[1]
    raise ConfigError(
        f"train.site_preserving: slide {slide.slide_id!r} has no site and no TCGA barcode as patient_id; "
        f"fill the manifest's site column"
    )


Rows = list[SlideRow]


def _manifest_split(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """The training, validation and test rows of the manifest's column ``split``."""
    for row in rows:
        if not row.split:
            raise ConfigError(
                f"slide {row.slide_id!r} has a label but no split, while others have one; give it train, val or test"
            )
    train, val, test = ([r for r in rows if r.split == part] for part in ("train", "val", "test"))
    return train, val, test


def _k_folds(
    rows: Rows, stratum_of: Mapping[str, str], config: TrainConfig, seed: int
) -> list[tuple[Rows, Rows, Rows]]:
    """Training and test parts of each fold; the validation part is still empty."""
    from sklearn.model_selection import StratifiedGroupKFold

    _check_patients(rows, stratum_of, config)
    groups = [site_of(r) if config.site_preserving else r.patient_id for r in rows]
    if len(set(groups)) < config.folds:
        what = "site(s)" if config.site_preserving else "patient(s)"
        raise ConfigError(
            f"there are {len(set(groups))} {what}, too few for {config.folds} folds; set fewer train.folds"
        )
    splitter = StratifiedGroupKFold(config.folds, shuffle=True, random_state=seed_from("folds", seed) % 2**32)
    parts = splitter.split(rows, [stratum_of[r.slide_id] for r in rows], groups)
    return [([rows[i] for i in train], [], [rows[i] for i in test]) for train, test in parts]


def _check_patients(rows: Rows, stratum_of: Mapping[str, str], config: TrainConfig) -> None:
    """Check that every class has a patient for each fold; for other tasks, ``strata`` has merged small strata."""
    if config.task != "classification":
        return
    patients: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        patients[stratum_of[row.slide_id]].add(row.patient_id)
    label, fewest = min(((label, len(ids)) for label, ids in patients.items()), key=lambda item: (item[1], item[0]))
    if fewest < config.folds:
        remedy = f"set train.folds={fewest}" if fewest > 1 else "label slides of more patients, or give splits"
        raise ConfigError(f"class {label!r} has {fewest} patient(s), too few for {config.folds} folds; {remedy}")


def _split_validation(
    train: Rows, stratum_of: Mapping[str, str], fraction: float, generator: np.random.Generator
) -> tuple[Rows, Rows]:
    """Move ``fraction`` of the patients of each stratum to validation: at least one, but never all of them."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in train:
        labels[row.patient_id].add(stratum_of[row.slide_id])
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
    """Check one fold: no patient in two parts, every class or an event to train on, and a validation part."""
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
        raise ConfigError(f"a fold has no event in its training or validation part; {remedy}")
    if task == "classification" and (missing := sorted(classes - {str(r.label) for r in train})):
        raise ConfigError(f"no training slide of a fold is labelled {missing[0]!r}; {remedy}")
    if not val:
        raise ConfigError(f"no patient is left for validation; {remedy}")
