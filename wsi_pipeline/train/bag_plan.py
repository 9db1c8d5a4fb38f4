"""The bags of one fold: which bags each part has, which slides each bag consists of, and their training targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..types import SlideRow
from .fold_job import FoldJob
from .labels import Target, target, unit_of, units


@dataclass(frozen=True)
class BagPlan:
    """The bags of a fold by name. The names of a part are in the order of its slides.

    ``targets`` are the manifest's; ``standard`` are those used in training, which differ for regression only: there
    they are standardised with ``scale``, the mean and standard deviation over the training bags (else 0 and 1).
    """

    rows: Mapping[str, SlideRow]  # slide_id -> row of the manifest
    units: Mapping[str, tuple[str, ...]]  # name of a bag -> its slide ids
    targets: Mapping[str, Target]
    standard: Mapping[str, Target]
    scale: tuple[float, float]
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, job: FoldJob) -> BagPlan:
        """The plan for ``job``. Raises ``ConfigError`` where a label cannot be used for the task."""
        config, split = job.config, job.split
        rows = {slide.slide_id: slide for slide in job.slides}
        named = units(job.slides, config.bag)
        name_of = unit_of(named)
        parts = [tuple(dict.fromkeys(name_of[s] for s in part)) for part in (split.train, split.val, split.test)]
        targets = {name: target(rows[slides[0]], config.task, job.classes) for name, slides in named.items()}
        scale, standard = (0.0, 1.0), targets
        if config.task == "regression":
            values = np.array([targets[name][0] for name in parts[0]])
            scale = (float(values.mean()), float(values.std()) or 1.0)
            standard = {name: ((value - scale[0]) / scale[1],) for name, (value,) in targets.items()}
        return cls(rows, named, targets, standard, scale, *parts)

    def patients(self, names: Sequence[str]) -> list[str]:
        """The patient_id of each bag in ``names``."""
        return [self.rows[self.units[name][0]].patient_id for name in names]
