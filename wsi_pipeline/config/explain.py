"""The config section ``explain``: which explanations are computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from .base import Section, distinct, listed

SummaryMap = Literal["consensus", "agreement", "spread", "sign_agreement", "entropy", "distance"]


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
    summary_maps: Annotated[tuple[SummaryMap, ...], AfterValidator(distinct)] = Field(
        (), description="made of the methods' maps and of the ensemble: what they agree on, how sure they are"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="of methods, by name, e.g. {lime: {samples: 500}}"
    )
    classes: tuple[str, ...] | None = Field(None, description="default: the positive of two, else the predicted one")
    device: str = "auto"
