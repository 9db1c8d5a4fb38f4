"""The config section ``view``: what people look at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Count, Section


class ViewConfig(Section):
    """What people look at."""

    top_patches: Annotated[int, Field(ge=0)] = Field(8, description="highest-scoring patches shown per slide")
    thumbnail_px: Count = Field(640, description="longer side of a report picture")
    max_tiles: Count = Field(
        250_000, description="most tiles in one GeoJSON; above, only the highest scores are written"
    )
