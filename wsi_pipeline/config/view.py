"""The config section ``view``: QuPath files and the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Count, Section


class ViewConfig(Section):
    """QuPath files and the report."""

    top_patches: Annotated[int, Field(ge=0)] = Field(default=8, description="highest-scoring patches shown per slide")
    thumbnail_px: Count = Field(default=640, description="longer side of a picture in the report")
    max_tiles: Count = Field(
        default=250_000, description="most tiles in one GeoJSON; of more, only the highest scores are written"
    )
