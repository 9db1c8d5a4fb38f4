"""The config section ``heatmap``: the map pyramids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import Section


class HeatmapConfig(Section):
    """The map pyramids."""

    cell_px0: Annotated[int, Field(ge=1, le=32)] | None = Field(
        default=None,
        description="level-0 pixels per cell side; default: largest power of two, at most 32 and half the stride",
    )
    ngff: Annotated[Literal["0.4", "0.5"], BeforeValidator(str)] = Field(
        default="0.4", description="version of OME-Zarr; QuPath opens 0.4"
    )
    chunk: Annotated[int, Field(ge=1, le=8192, strict=True)] = Field(
        default=512, description="cells per side of a chunk"
    )
