"""What one fold is told. Light, so that asking whether a fold is current loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import content_key, read_key
from ..config import ModelChoice, TrainConfig
from ..types import SlideRow
from .splits import Split

# In the key as seed, split and class order; a recipe as the values it gave.
_DECIDED_ELSEWHERE = {"seeds", "folds", "val_fraction", "classes", "site_preserving", "recipe"}

STATE = "unfinished.ckpt"  # in a fold's folder: what it goes on from after a stop


@dataclass(frozen=True)
class FoldJob:
    """All that one fold needs to know; crosses a process border."""

    choice: ModelChoice
    config: TrainConfig  # of this model, see ``config.train_of``
    encoder_options: Mapping[str, Any]  # for the card
    classes: tuple[str, ...]
    seed: int
    split: Split
    slides: tuple[SlideRow, ...]  # those of the split, labelled
    bags: Mapping[str, Path]

    def key(self) -> str:
        """What decides the fold's result. Seeds and folds beside it do not: a new seed trains only itself."""
        section = {name: value for name, value in self.config.for_key().items() if name not in _DECIDED_ELSEWHERE}
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
