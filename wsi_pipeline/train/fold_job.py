"""Inputs of one fold's training. Imports no torch, so that checking whether a fold is current stays fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import content_key, read_key
from ..config import ModelChoice, TrainConfig
from ..types import SlideRow
from .splits import Split

# The key holds these as seed, split and class order, and a recipe as the values that it set.
_KEYED_OTHERWISE = {"seeds", "folds", "val_fraction", "classes", "site_preserving", "recipe"}

STATE = "unfinished.ckpt"  # in the folder of a fold: the state from which training resumes after an interruption


@dataclass(frozen=True)
class FoldJob:
    """All inputs of one fold's training; it can be pickled to a worker process."""

    choice: ModelChoice
    config: TrainConfig  # of this model, see ``config.train_of``
    encoder_options: Mapping[str, Any]  # for the model's card
    classes: tuple[str, ...]  # names of the model's outputs, see ``labels.outputs``
    seed: int
    split: Split
    slides: tuple[SlideRow, ...]  # the labelled slides of the split
    bags: Mapping[str, Path]  # slide_id -> its bag

    def key(self) -> str:
        """Content key of the fold's result, independent of other seeds and folds: a new seed retrains no other."""
        section = {name: value for name, value in self.config.for_key().items() if name not in _KEYED_OTHERWISE}
        return content_key(
            stage="train",
            config=section,
            model={"name": self.choice.name, "options": self.choice.options},
            encoder_options=self.encoder_options,
            classes=self.classes,
            seed=self.seed,
            split=vars(self.split),
            slides=[
                (s.slide_id, s.patient_id, s.label, s.time, s.event, read_key(self.bags[s.slide_id]))
                for s in self.slides
            ],
        )
