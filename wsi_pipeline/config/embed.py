"""The config section ``embed``: the patch encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from .base import Count, Options, Section, runtime


class EmbedConfig(Section):
    """The patch encoder."""

    encoder: str = Field(default="lite0", description="an encoder's name (see `wsi list encoders`)")
    encoder_options: Options = Field(default_factory=dict, description="its options")
    pretrained: bool = Field(default=True, description="false: random weights, for smoke tests")
    weights: Path | None = Field(default=None, description="local weights (.pth, .pt, .bin or .safetensors)")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="autocast type of the encoder")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="type of the stored features")
    batch: Count = Field(default=32, description="patches per forward pass")
    channels_last: bool = Field(default=True, description="NHWC memory layout in the encoder")
    compile: bool = Field(default=False, description="torch.compile the encoder")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    import_: Path | None = Field(
        default=None,
        alias="import",
        description="folder of feature files made by CLAM, TRIDENT, STAMP or AtlasPatch, used instead of an encoder",
    )
    import_options: Options = Field(
        default_factory=dict, description="what such files do not contain (see `wsi import-features --help`)"
    )
    threads: int = runtime(0, "CPU threads that encode; 0: all cores of this worker", ge=0)
    read_threads: int = runtime(0, "threads that read patches ahead; 0: all cores with a GPU, else 2", ge=0)
    tile_cache_mb: Count = runtime(512, "megabytes of decoded tiles that are cached while patches are cut from them")
