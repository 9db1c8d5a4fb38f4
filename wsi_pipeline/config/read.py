"""The config section ``read``: how slides are opened."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Positive, Section


class ReadConfig(Section):
    """How slides are opened."""

    reader: str = Field(
        default="auto", description="a reader's name (see `wsi list readers`), or auto: the first that opens the slide"
    )
    mpp: Positive | tuple[Positive, Positive] | None = Field(
        default=None, description="µm per pixel of level 0, where the manifest gives none; overrides the file's own"
    )
    scaling: Literal["exact", "dct"] = Field(
        default="exact",
        description="dct: JPEG tiles are downscaled while they are decoded: faster, with slightly different pixels",
    )
