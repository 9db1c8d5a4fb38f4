"""The config section ``predict``: predictions by models that have not seen the slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from .base import Section


class PredictConfig(Section):
    """Predictions by models that have not seen the slide."""

    model: Path | None = Field(
        default=None, description="folder of a trained model or of an ensemble; default: this run's own folds"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1,
        description="risk that a prediction set misses the true class (split conformal, from validation slides)",
    )
    abstain: bool = Field(
        default=False, description="predict a class only where the prediction set contains exactly one"
    )
    mc_dropout: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Monte Carlo dropout: forward passes per ensemble member, for the uncertainty; 0: none"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
