"""The config section ``evaluate``: measures and their intervals."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Count, Positive, Section


class EvaluateConfig(Section):
    """Measures and their intervals."""

    OF_EXPLANATIONS: ClassVar = (
        "explained_models",
        "explained_slides",
        "flipping_points",
        "replacement",
        "infidelity_samples",
        "sensitivity_samples",
    )

    bootstrap: Count = Field(1000, description="resamples of patients for the 95 % intervals")
    seed: Annotated[int, Field(ge=0)] = 0
    specificity: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.95,), description="sensitivity is reported at these specificities"
    )
    bins: Count = Field(15, description="bins of the calibration error and the reliability diagram")
    froc: str | None = Field(
        None,
        description="method of explain whose maps are turned into detections for the FROC, e.g. instance; "
        "`wsi evaluate explanations` has that of every method",
    )
    froc_radius_um: Positive = Field(250.0, description="around a detection, no weaker one is kept")
    tumour_classes: tuple[str, ...] | None = Field(None, description="of annotations; default: all but exclusions")
    explained_models: tuple[str, ...] | None = Field(None, description="explanations: of these models; default: all")
    explained_slides: Count | None = Field(
        None, description="explanations: of so many slides a model, annotated ones first; default: of all held out"
    )
    flipping_points: Annotated[int, Field(ge=2, strict=True)] = Field(
        101, description="explanations: shares of a bag, from none to all, at which patches are taken away"
    )
    replacement: Literal["mean"] | None = Field(
        "mean", description="explanations: patches are also replaced, by the mean of the bag; null: only dropped"
    )
    infidelity_samples: Annotated[int, Field(ge=0, strict=True)] = Field(
        50, description="explanations: squares of patches, replaced by the mean of the bag, for the infidelity; 0: none"
    )
    sensitivity_samples: Annotated[int, Field(ge=0, strict=True)] = Field(
        10, description="explanations: small changes of the features for the sensitivity of a map; 0: none"
    )
