"""The config section ``predict``: predictions on slides that no fold has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from .base import Section


class PredictConfig(Section):
    """Predictions on slides that no fold has seen."""

    model: Path | None = Field(
        None, description="folder of a trained model or of an ensemble; default: this run's own folds"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="prediction sets miss the true class at most this often (split conformal, from validation)"
    )
    abstain: bool = Field(False, description="name a class only where the prediction set holds just one")
    mc_dropout: Annotated[int, Field(ge=0)] = Field(
        0, description="forward passes with dropout a member, for the uncertainty; 0: none"
    )
    device: str = "auto"
