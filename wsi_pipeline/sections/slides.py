"""From slides to bags: read, tile, embed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .base import Count, Fraction, Options, Positive, Section, runtime


class ReadConfig(Section):
    """How slides are opened."""

    reader: str = Field(
        "auto", description="a reader's name (see `wsi list readers`), or auto: the first that opens the slide"
    )
    mpp: Positive | tuple[Positive, Positive] | None = Field(
        None, description="µm per pixel of level 0 for slides whose manifest line gives none; wins over the file's own"
    )
    scaling: Literal["exact", "dct"] = Field(
        "exact",
        description="dct: JPEG tiles are shrunk while they are decoded: faster, and not quite the same pixels",
    )


class TileConfig(Section):
    """Where the tissue is, and the grid of patches on it."""

    mpp: Positive = Field(0.5, description="µm per pixel of the patches; met exactly, from the nearest finer level")
    side_px: Count = Field(224, description="side of a patch in pixels at that mpp")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the side that neighbours share")
    min_tissue: Fraction = Field(0.5, description="least share of a patch that tissue must cover")
    detector: str = Field("otsu", description="a tissue detector's name")
    detector_options: Options = Field(default_factory=dict, description="its options (see `wsi list detectors`)")
    tissue_mpp: Annotated[float, Field(gt=0, le=1000)] = Field(
        8.0, description="µm per pixel at which tissue is looked for"
    )
    roi: Path | None = Field(
        None, description="GeoJSON, or a folder of <slide_id>.geojson: only patches inside these regions are kept"
    )
    roi_class: str | None = Field(None, description="use only the regions of this class")


class EmbedConfig(Section):
    """The patch encoder."""

    encoder: str = Field("lite0", description="an encoder's name (see `wsi list encoders`)")
    encoder_options: Options = Field(default_factory=dict, description="its options")
    pretrained: bool = Field(True, description="false: random weights, for trying the way only")
    weights: Path | None = Field(None, description="local weights (.pth, .pt, .bin or .safetensors)")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type of the encoder")
    dtype: Literal["float16", "float32"] = Field("float16", description="type of the stored features")
    batch: Count = Field(32, description="patches a forward pass")
    channels_last: bool = Field(True, description="NHWC memory layout in the encoder")
    compile: bool = Field(False, description="torch.compile the encoder")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    import_: Path | None = Field(
        None,
        alias="import",
        description="folder of feature files made by CLAM, TRIDENT, STAMP or AtlasPatch, to use in place of an encoder",
    )
    import_options: Options = Field(
        default_factory=dict, description="what such files do not hold (see `wsi import-features --help`)"
    )
    threads: int = runtime(0, "CPU threads that encode; 0: the cores this worker has", ge=0)
    read_threads: int = runtime(0, "threads that read patches ahead; 0: all cores beside a GPU, else 2", ge=0)
    tile_mb: Count = runtime(512, "megabytes of decoded tiles that are kept while patches are cut from them")
