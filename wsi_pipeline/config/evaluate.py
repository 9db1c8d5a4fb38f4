"""The config section ``evaluate``: metrics and their intervals."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Count, Positive, Section


class EvaluateConfig(Section):
    """Metrics and their intervals."""

    OF_EXPLANATIONS: ClassVar = (  # the keys of `wsi evaluate explanations` only
        "explained_models",
        "explained_slides",
        "flipping_points",
        "replacement",
        "infidelity_samples",
        "sensitivity_samples",
    )

    bootstrap: Count = Field(default=1000, description="bootstrap resamples of patients for the 95 % intervals")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the resamples and of all random choices here")
    specificity: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.95,), description="sensitivity is reported at these specificities"
    )
    bins: Count = Field(default=15, description="bins of the calibration error and the reliability diagram")
    froc: str | None = Field(
        default=None,
        description="method of explain whose maps are turned into detections for the FROC, e.g. instance; "
        "`wsi evaluate explanations` computes it for every method",
    )
    froc_radius_um: Positive = Field(
        default=250.0, description="radius around a detection within which weaker detections are dropped"
    )
    tumour_classes: tuple[str, ...] | None = Field(
        default=None, description="annotation classes that count as tumour; default: all except exclusions"
    )
    explained_models: tuple[str, ...] | None = Field(
        default=None, description="explanations: measure these models only; default: all"
    )
    explained_slides: Count | None = Field(
        default=None,
        description="explanations: number of slides per model, annotated ones first; default: all held-out slides",
    )
    flipping_points: Annotated[int, Field(ge=2, strict=True)] = Field(
        default=101, description="explanations: points of a flipping curve, from no patch to all patches removed"
    )
    replacement: Literal["mean"] | None = Field(
        default="mean",
        description="explanations: also replace removed patches by the mean of the bag; null: only drop them",
    )
    infidelity_samples: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=50,
        description="explanations: random squares of patches replaced by the bag's mean, for infidelity; 0: none",
    )
    sensitivity_samples: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=10,
        description="explanations: random small changes of the features, for the sensitivity of a map; 0: none",
    )
