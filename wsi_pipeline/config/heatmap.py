"""The config section ``heatmap``: the map pyramids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import Section


class HeatmapConfig(Section):
    """The map pyramids."""

    cell_px0: Annotated[int, Field(ge=1, le=32)] | None = Field(
        None, description="level-0 pixels per cell side; default: the largest power of two up to 32 and half the stride"
    )
    ngff: Annotated[Literal["0.4", "0.5"], BeforeValidator(str)] = Field("0.4", description="0.4 is what QuPath opens")
    chunk: Annotated[int, Field(ge=1, le=8192, strict=True)] = Field(512, description="cells a chunk side")
