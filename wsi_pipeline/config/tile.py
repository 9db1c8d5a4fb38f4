"""The config section ``tile``: where the tissue is, and the grid of patches on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from .base import Count, Fraction, Options, Positive, Section


class TileConfig(Section):
    """Where the tissue is, and the grid of patches on it."""

    mpp: Positive = Field(
        default=0.5, description="µm per pixel of the patches; exact: resampled from the nearest finer level"
    )
    side_px: Count = Field(default=224, description="side of a patch in pixels, at that mpp")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="overlap of neighbouring patches, as a fraction of the side"
    )
    min_tissue: Fraction = Field(default=0.5, description="least fraction of a patch that tissue must cover")
    detector: str = Field(default="otsu", description="a tissue detector's name (see `wsi list detectors`)")
    detector_options: Options = Field(default_factory=dict, description="its options")
    tissue_mpp: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=8.0, description="µm per pixel of the overview in which tissue is detected"
    )
    roi: Path | None = Field(
        default=None,
        description="GeoJSON, or a folder of <slide_id>.geojson: only patches inside these regions are kept",
    )
    roi_class: str | None = Field(default=None, description="use only the regions of this class")
