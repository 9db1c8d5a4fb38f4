"""The config section ``explain``: which explanations are computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from .base import Section, distinct, listed

SummaryMap = Literal["consensus", "agreement", "spread", "sign_agreement", "entropy", "distance"]


class ExplainConfig(Section):
    """Which explanations are computed."""

    methods: Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(distinct)] = Field(
        default=("attention", "contribution", "instance", "gradient_x_input"),
        min_length=1,
        description="methods (see `wsi list explainers`); auto: per model the one that patch flipping selects",
    )
    candidates: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        default=(
            "attention",
            "contribution",
            "instance",
            "leave_one_out",
            "gradient_x_input",
            "lrp",
            "integrated_gradients",
        ),
        min_length=1,
        description="what auto selects from, on validation slides, as far as a method fits the model",
    )
    summary_maps: Annotated[tuple[SummaryMap, ...], AfterValidator(distinct)] = Field(
        default=(),
        description="maps of the methods' agreement and the ensemble's uncertainty: consensus, agreement, spread, "
        "sign_agreement, entropy, distance",
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of methods, by name, e.g. {lime: {samples: 500}}"
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="classes to explain; default: the positive of two, else the predicted one"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
