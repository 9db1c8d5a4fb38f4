"""From predictions to what people look at: explain, heatmap, evaluate, view."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from .base import Count, Positive, Section, distinct, listed

MapName = Literal["consensus", "agreement", "spread", "sign_agreement", "entropy", "distance"]


class ExplainConfig(Section):
    """Which explanations are computed."""

    methods: Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(distinct)] = Field(
        ("attention", "contribution", "instance", "gradient_x_input"),
        min_length=1,
        description="auto: what patch flipping on validation slides picks for each model",
    )
    candidates: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        ("attention", "contribution", "instance", "leave_one_out", "gradient_x_input", "lrp", "integrated_gradients"),
        min_length=1,
        description="what auto picks from, as far as it fits",
    )
    maps: Annotated[tuple[MapName, ...], AfterValidator(distinct)] = Field(
        (), description="made of the methods' maps and of the ensemble: what they agree on, how sure they are"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="of methods, by name, e.g. {lime: {samples: 500}}"
    )
    classes: tuple[str, ...] | None = Field(None, description="default: the positive of two, else the predicted one")
    device: str = "auto"


class HeatmapConfig(Section):
    """The map pyramids."""

    cell_px0: Annotated[int, Field(ge=1, le=32)] | None = Field(
        None, description="level-0 pixels per cell side; default: the largest power of two up to 32 and half the stride"
    )
    ngff: Annotated[Literal["0.4", "0.5"], BeforeValidator(str)] = Field("0.4", description="0.4 is what QuPath opens")
    chunk: Annotated[int, Field(ge=1, le=8192, strict=True)] = Field(512, description="cells a chunk side")


class EvaluateConfig(Section):
    """Measures and their intervals."""

    OF_EXPLANATIONS: ClassVar = (
        "explained_models",
        "explained_slides",
        "flips",
        "replace",
        "removals",
        "perturbations",
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
    flips: Annotated[int, Field(ge=2, strict=True)] = Field(
        101, description="explanations: shares of a bag, from none to all, at which patches are taken away"
    )
    replace: Literal["mean"] | None = Field(
        "mean", description="explanations: patches are also replaced, by the mean of the bag; null: only dropped"
    )
    removals: Annotated[int, Field(ge=0, strict=True)] = Field(
        50, description="explanations: squares of patches, replaced by the mean of the bag, for the infidelity; 0: none"
    )
    perturbations: Annotated[int, Field(ge=0, strict=True)] = Field(
        10, description="explanations: small changes of the features for the sensitivity of a map; 0: none"
    )


class ViewConfig(Section):
    """What people look at."""

    top_patches: Annotated[int, Field(ge=0)] = Field(8, description="highest-scoring patches shown per slide")
    thumbnail_px: Count = Field(640, description="longer side of a report picture")
    max_tiles: Count = Field(
        250_000, description="most tiles in one GeoJSON; above, only the highest scores are written"
    )
