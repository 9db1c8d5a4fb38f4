"""Pathology encoders of the preset tables: one entry in a table adds an encoder.

Each is built by timm with the arguments that its authors publish and loaded strictly from its weights file, so an
argument that does not fit raises an error with the tensor's name. A patch of another side than the encoder's is
resized and never cropped. GigaPath's authors crop the central 224 px of 256: tile at 224 px to give it equal patches.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from . import Encoder, encoders
from .preset import Preset
from .preset_table import TABLE
from .preset_table_other import TABLE_OTHER
from .state import frozen, load_state, read_state, seeded
from .token_pooling import pooled
from .weights import Source, digest, locate

PRESETS = (*TABLE, *TABLE_OTHER)


def build_network(preset: Preset) -> nn.Module:
    """Build the preset's network, without weights."""
    return preset.build(preset)


def register(preset: Preset) -> None:
    """Register a preset as an encoder."""

    def source(_: str) -> Source:
        return preset.source

    def build(weights: Path | None, pretrained: bool, *, pool: str = preset.pool) -> Encoder:
        return _build(preset, weights, pretrained, pool)

    build.__doc__ = f"{preset.summary}\n\n``pool``: cls, mean or cls+mean of the tokens; model: the network's own."
    encoders.register(
        preset.name,
        dim=preset.dim,
        side_px=preset.side_px,
        recommended_mpp=preset.mpp,
        mean=preset.colour[0],
        std=preset.colour[1],
        licence=preset.licence,
        paper=preset.paper,
        source=f"huggingface.co/{preset.hub}",
        hub=preset.hub,
        gated=preset.gated,
        weights=source,
    )(build)


def _build(preset: Preset, weights: Path | None, pretrained: bool, pool: str) -> Encoder:
    path = locate(preset.source, weights, pretrained)
    if path is None:
        network = seeded(lambda: build_network(preset))
    else:
        network = _empty_network(preset)
        load_state(network, preset.names(read_state(path)), path)
    return Encoder(
        name=preset.name,
        module=frozen(pooled(network, pool, preset.name)),
        dim=preset.dim if pool == preset.pool else _width(network, pool),
        side_px=preset.side_px,
        recommended_mpp=preset.mpp,
        mean=preset.colour[0],
        std=preset.colour[1],
        weights_digest=digest(path),
        interpolation=preset.interpolation,
    )


def _empty_network(preset: Preset) -> nn.Module:
    """The network on the meta device: no random initialisation, because load_state adopts the file's tensors.

    A network that computes buffers which no file contains, as Swin's attention masks, is built on the CPU.
    """
    with torch.device("meta"):
        network = build_network(preset)
    if {name for name, _ in network.named_buffers()} <= set(network.state_dict()):
        return network
    return seeded(lambda: build_network(preset))


def _width(network: nn.Module, pool: str) -> int:
    width = network.num_features
    assert isinstance(width, int)
    return 2 * width if pool == "cls+mean" else width


for _preset in PRESETS:
    register(_preset)
