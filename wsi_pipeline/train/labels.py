"""What a slide's label means for each task, as numbers: no torch, so that labels are checked before the first slide.

A target is a tuple of floats: classification (class index,); multilabel one 0 or 1 a class; regression (value,);
survival (time, event).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..config import TrainConfig
from ..errors import ConfigError
from ..project import LABEL_SEPARATOR
from ..types import SlideRow

Target = tuple[float, ...]


def has_target(slide: SlideRow, task: str) -> bool:
    """Whether the manifest says what the slide teaches."""
    if task == "survival":
        return slide.time is not None and slide.event is not None
    return slide.label is not None


def outputs(slides: Iterable[SlideRow], config: TrainConfig) -> tuple[str, ...]:
    """The names of the model's outputs, in order: classes, or ``value`` or ``risk``. Raises ``ConfigError``."""
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
    """The classes in the order of the logits: ``train.classes``, or the labels sorted. The last of two is positive."""
    found = {name: s.slide_id for s in slides for name in (labels(s) if multilabel else [str(s.label)])}
    classes = tuple(configured) if configured is not None else tuple(sorted(found))
    if len(set(classes)) < len(classes):
        raise ConfigError(f"train.classes names a class twice: {', '.join(classes)}")
    if outside := sorted(set(found) - set(classes)):
        raise ConfigError(
            f"slide {found[outside[0]]!r} has label {outside[0]!r}, which is not in train.classes "
            f"({', '.join(classes)}); add it there, or empty the label"
        )
    if several := [name for name in classes if LABEL_SEPARATOR in name]:
        raise ConfigError(
            f"class {several[0]!r} has a {LABEL_SEPARATOR!r}, which joins the classes of multilabel; rename it"
        )
    if len(classes) < (1 if multilabel else 2):
        raise ConfigError(f"training needs two classes, but every label is {classes[0]!r}; label slides of another")
    return classes


def labels(slide: SlideRow) -> list[str]:
    """The classes of a multilabel slide; ``-`` stands for none of them."""
    names = [name.strip() for name in str(slide.label).split(LABEL_SEPARATOR)]
    return [name for name in names if name not in ("", "-")]


def target(slide: SlideRow, task: str, classes: Sequence[str]) -> Target:
    """What the slide teaches. Raises ``ConfigError`` where a regression's label is no number."""
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
        own = labels(slide)
        return tuple(float(name in own) for name in classes)
    return (float(classes.index(str(slide.label))),)


def strata(slides: Sequence[SlideRow], config: TrainConfig) -> dict[str, str]:
    """slide_id -> what folds are stratified by: class, classes, quarter of the values, or event.

    Of tasks other than classification, strata of fewer patients than folds are joined, with the largest if need be.
    """
    if config.task == "classification":
        return {s.slide_id: str(s.label) for s in slides}
    if config.task == "survival":
        found = {s.slide_id: str(s.event) for s in slides}
    elif config.task == "multilabel":
        found = {s.slide_id: LABEL_SEPARATOR.join(sorted(labels(s))) for s in slides}
    else:
        values = np.array([target(s, "regression", ())[0] for s in slides])
        quarters = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)
        found = {s.slide_id: str(quarter) for s, quarter in zip(slides, quarters, strict=True)}
    patients = Counter(stratum for _, stratum in {(s.patient_id, found[s.slide_id]) for s in slides})
    scarce = {stratum for stratum, count in patients.items() if count < config.folds}
    joined = "rare" if sum(patients[s] for s in scarce) >= config.folds else patients.most_common(1)[0][0]
    return {name: joined if stratum in scarce else stratum for name, stratum in found.items()}


def units(slides: Sequence[SlideRow], bag: str) -> dict[str, tuple[str, ...]]:
    """Name of each bag -> its slides: one slide, or all those of a patient. Raises ``ConfigError``.

    The slides of a patient that are one bag must teach the same.
    """
    if bag == "slide":
        return {s.slide_id: (s.slide_id,) for s in slides}
    found: dict[str, tuple[str, ...]] = {}
    said: dict[str, tuple[object, ...]] = {}
    for slide in sorted(slides, key=lambda s: s.slide_id):
        found[slide.patient_id] = (*found.get(slide.patient_id, ()), slide.slide_id)
        teaches = (slide.label, slide.time, slide.event)
        if said.setdefault(slide.patient_id, teaches) != teaches:
            raise ConfigError(
                f"train.bag=patient: the slides of patient {slide.patient_id!r} have different labels; "
                f"give them one, or train.bag=slide"
            )
    return found


def unit_of(units: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """slide_id -> name of its bag."""
    return {slide_id: name for name, members in units.items() for slide_id in members}
