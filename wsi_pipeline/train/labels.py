"""Numeric training targets from the manifest's labels, for each task.

A target is a tuple of floats: classification (class index,); multilabel one 0 or 1 per class; regression (value,);
survival (time, event). Imports no torch, so that labels can be checked before the first slide is processed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..config import TrainConfig
from ..errors import ConfigError
from ..project import LABEL_SEPARATOR, label_classes
from ..types import SlideRow

Target = tuple[float, ...]


def has_target(slide: SlideRow, task: str) -> bool:
    """Whether the manifest has a training target for the slide: time and event for survival, else a label."""
    if task == "survival":
        return slide.time is not None and slide.event is not None
    return slide.label is not None


def outputs(slides: Iterable[SlideRow], config: TrainConfig) -> tuple[str, ...]:
    """Names of the model's outputs, in the order of its logits.

    Parameters
    ----------
    slides : iterable of SlideRow
        The labelled slides.
    config : TrainConfig
        ``task`` and ``classes`` are used.

    Returns
    -------
    tuple of str
        The classes; ``("value",)`` for regression; ``("risk",)`` for survival.

    Raises
    ------
    ConfigError
        Where a regression label is not a number, or the classes cannot be used (see ``class_order``).
    """
    if config.task == "survival":
        return ("risk",)
    if config.task == "regression":
        for slide in slides:
            target(slide, "regression", ())
        return ("value",)
    return class_order(slides, config.classes, multilabel=config.task == "multilabel")


def class_order(
    slides: Iterable[SlideRow], configured: Sequence[str] | None, *, multilabel: bool = False
) -> tuple[str, ...]:
    """The classes in the order of the logits: ``configured``, else the labels sorted. The last of two is the positive.

    Raises
    ------
    ConfigError
        Where a class is listed twice or contains the separator of multilabel classes, a label is not among the
        configured classes, or there are fewer than two classes (multilabel: fewer than one).
    """
    found = {name: s.slide_id for s in slides for name in _classes_of(s, multilabel)}
    classes = tuple(configured) if configured is not None else tuple(sorted(found))
    if len(set(classes)) < len(classes):
        raise ConfigError(f"train.classes lists a class twice: {', '.join(classes)}")
    if outside := sorted(set(found) - set(classes)):
        raise ConfigError(
            f"slide {found[outside[0]]!r} has label {outside[0]!r}, which is not in train.classes "
            f"({', '.join(classes)}); add it there, or empty the label"
        )
    if several := [name for name in classes if LABEL_SEPARATOR in name]:
        raise ConfigError(
            f"class {several[0]!r} contains {LABEL_SEPARATOR!r}, which separates the classes of multilabel; rename it"
        )
    if len(classes) < (1 if multilabel else 2):
        raise ConfigError(
            f"training needs two classes, but every label is {classes[0]!r}; label slides of another class"
        )
    return classes


def target(slide: SlideRow, task: str, classes: Sequence[str]) -> Target:
    """The training target of a slide, in the form that the module's docstring lists for ``task``.

    Raises
    ------
    ConfigError
        Where a regression label is not a finite number.
    """
    if task == "survival":
        assert slide.time is not None
        assert slide.event is not None
        return (slide.time, float(slide.event))
    if task == "regression":
        try:
            value = float(str(slide.label))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(
                f"slide {slide.slide_id!r} has label {slide.label!r}; train.task=regression needs a number there"
            )
        return (value,)
    if task == "multilabel":
        own = _classes_of(slide, multilabel=True)
        return tuple(float(name in own) for name in classes)
    return (float(classes.index(str(slide.label))),)


def strata(slides: Sequence[SlideRow], config: TrainConfig) -> dict[str, str]:
    """slide_id -> stratum for stratified folds: the class, the set of classes, the quartile of the value, or the event.

    For tasks other than classification, strata with fewer patients than folds are merged, if necessary with the
    largest stratum.
    """
    if config.task == "classification":
        return {s.slide_id: str(s.label) for s in slides}
    if config.task == "survival":
        found = {s.slide_id: str(s.event) for s in slides}
    elif config.task == "multilabel":
        found = {s.slide_id: LABEL_SEPARATOR.join(sorted(_classes_of(s, multilabel=True))) for s in slides}
    else:
        values = np.array([target(s, "regression", ())[0] for s in slides])
        quarters = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)
        found = {s.slide_id: str(quarter) for s, quarter in zip(slides, quarters, strict=True)}
    patients = Counter(stratum for _, stratum in {(s.patient_id, found[s.slide_id]) for s in slides})
    scarce = {stratum for stratum, count in patients.items() if count < config.folds}
    joined = "rare" if sum(patients[s] for s in scarce) >= config.folds else patients.most_common(1)[0][0]
    return {name: joined if stratum in scarce else stratum for name, stratum in found.items()}


def units(slides: Sequence[SlideRow], bag: str) -> dict[str, tuple[str, ...]]:
    """Name of each bag -> the ids of its slides: one slide, or with ``bag="patient"`` all slides of a patient.

    Raises
    ------
    ConfigError
        Where slides of one patient that form one bag differ in label, time or event.
    """
    if bag == "slide":
        return {s.slide_id: (s.slide_id,) for s in slides}
    found: dict[str, tuple[str, ...]] = {}
    outcomes: dict[str, tuple[object, ...]] = {}
    for slide in sorted(slides, key=lambda s: s.slide_id):
        found[slide.patient_id] = (*found.get(slide.patient_id, ()), slide.slide_id)
        own = (slide.label, slide.time, slide.event)
        if outcomes.setdefault(slide.patient_id, own) != own:
            raise ConfigError(
                f"train.bag=patient: the slides of patient {slide.patient_id!r} have different labels; "
                f"give them one, or train.bag=slide"
            )
    return found


def unit_of(units: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The inverse of ``units``: slide_id -> name of its bag."""
    return {slide_id: name for name, members in units.items() for slide_id in members}


def _classes_of(slide: SlideRow, multilabel: bool) -> list[str]:
    return label_classes(str(slide.label)) if multilabel else [str(slide.label)]
