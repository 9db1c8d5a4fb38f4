"""One fold in bags: which bags each part has, which slides they are, and what they teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..types import SlideRow
from .fold_job import FoldJob
from .labels import Target, target, unit_of, units


@dataclass(frozen=True)
class BagPlan:
    """Bags by name; a part's names are in the order of its slides."""

    rows: Mapping[str, SlideRow]  # by slide_id
    units: Mapping[str, tuple[str, ...]]  # name -> slide ids
    targets: Mapping[str, Target]  # as the manifest says
    standard: Mapping[str, Target]  # as training is given them: a regression's in standard units
    scale: tuple[float, float]  # a regression's mean and standard deviation over the training bags; else (0, 1)
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, task: FoldJob) -> BagPlan:
        """The plan of ``task``."""
        config, split = task.config, task.split
        rows = {slide.slide_id: slide for slide in task.slides}
        named = units(task.slides, config.bag)
        name_of = unit_of(named)
        parts = [tuple(dict.fromkeys(name_of[s] for s in part)) for part in (split.train, split.val, split.test)]
        targets = {name: target(rows[slides[0]], config.task, task.classes) for name, slides in named.items()}
        scale, standard = (0.0, 1.0), targets
        if config.task == "regression":
            values = np.array([targets[name][0] for name in parts[0]])
            scale = (float(values.mean()), float(values.std()) or 1.0)
            standard = {name: ((value - scale[0]) / scale[1],) for name, (value,) in targets.items()}
        return cls(rows, named, targets, standard, scale, *parts)

    def patients(self, names: Sequence[str]) -> list[str]:
        """Whose each bag is."""
        return [self.rows[self.units[name][0]].patient_id for name in names]
