"""Pathology encoders of the Hugging Face hub as a table: one line of data adds one.

Each is built by timm from the arguments that its authors publish and filled strictly from its weights file, so an
argument that does not fit fails by name. Input is 224 px; a patch of another side is resized whole. GigaPath's
authors cut the middle 224 px out of 256: here the patch is never cropped, so tile at 224 px to give it what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from . import Colour, Encoder, encoders
from .layouts import timm_names
from .state import State, frozen, load_state, read_state, seeded
from .tokens import pooled
from .weights import HubFile, Source, digest, locate

_IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BIOPTIMUS: tuple[Colour, Colour] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
SIDE_PX = 224


def _same(state: State) -> State:
    return state


@dataclass(frozen=True)
class Preset:
    """One published encoder."""

    name: str
    hub: str
    dim: int
    summary: str
    paper: str
    licence: str
    architecture: str  # timm's
    arguments: Mapping[str, Any]  # of timm.create_model, beside img_size and num_classes
    pool: str = "cls"  # what its authors use
    swiglu: bool = False  # packed SwiGLU instead of the plain MLP
    colour: tuple[Colour, Colour] = _IMAGENET  # mean, std
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mpp: float = 0.5
    gated: bool = True
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    names: Callable[[State], State] = field(default=_same)  # the file's tensor names -> timm's

    @property
    def source(self) -> Source:
        """Where its weights lie."""
        return HubFile(self.hub, self.files, self.gated)


_H_OPTIMUS = {"init_values": 1e-5, "dynamic_img_size": False}
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True}

PRESETS = (
    Preset(
        name="uni",
        hub="MahmoodLab/UNI",
        dim=1024,
        summary="UNI: ViT-L/16, DINOv2 on 100,000 slides; 1,024 features.",
        paper="Chen et al., Nature Medicine 2024, doi:10.1038/s41591-024-02857-3",
        licence="CC-BY-NC-ND-4.0",
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1e-5, "dynamic_img_size": True},
        interpolation="bilinear",
        files=("pytorch_model.bin",),
    ),
    Preset(
        name="uni2-h",
        hub="MahmoodLab/UNI2-h",
        dim=1536,
        summary="UNI 2: ViT-H/14 with 8 registers, DINOv2 on 350,000 H&E and IHC slides; 1,536 features.",
        paper="Chen et al., Nature Medicine 2024, doi:10.1038/s41591-024-02857-3",
        licence="CC-BY-NC-ND-4.0",
        architecture="vit_giant_patch14_224",
        arguments={
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        swiglu=True,
        interpolation="bilinear",
        files=("pytorch_model.bin",),
    ),
    Preset(
        name="virchow",
        hub="paige-ai/Virchow",
        dim=2560,
        summary="Virchow: ViT-H/14, DINOv2 on 1.5 million slides; class token and mean of patches, 2,560 features.",
        paper="Vorontsov et al., Nature Medicine 2024, doi:10.1038/s41591-024-03141-0",
        licence="Apache-2.0",
        architecture="vit_huge_patch14_224",
        arguments=_VIRCHOW,
        pool="cls+mean",
        swiglu=True,
    ),
    Preset(
        name="virchow2",
        hub="paige-ai/Virchow2",
        dim=2560,
        summary="Virchow 2: ViT-H/14 with 4 registers, 3.1 million slides at 0.25 to 2 µm/px; 2,560 features.",
        paper="Zimmermann et al. 2024, arXiv:2408.00738",
        licence="CC-BY-NC-ND-4.0",
        architecture="vit_huge_patch14_224",
        arguments={**_VIRCHOW, "reg_tokens": 4},
        pool="cls+mean",
        swiglu=True,
    ),
    Preset(
        name="h-optimus-0",
        hub="bioptimus/H-optimus-0",
        dim=1536,
        summary="H-optimus-0: ViT-g/14 with 4 registers, DINOv2 on 500,000 slides; 1,536 features.",
        paper="Saillard et al. 2024, github.com/bioptimus/releases",
        licence="Apache-2.0",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments=_H_OPTIMUS,
        colour=_BIOPTIMUS,
    ),
    Preset(
        name="h-optimus-1",
        hub="bioptimus/H-optimus-1",
        dim=1536,
        summary="H-optimus-1: ViT-g/14 with 4 registers, more than a million slides; 1,536 features.",
        paper="Bioptimus 2025, huggingface.co/bioptimus/H-optimus-1",
        licence="CC-BY-NC-ND-4.0",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments=_H_OPTIMUS,
        colour=_BIOPTIMUS,
    ),
    Preset(
        name="gigapath",
        hub="prov-gigapath/prov-gigapath",
        dim=1536,
        summary="Prov-GigaPath's patch encoder: ViT-g/16, DINOv2 on 171,000 slides; 1,536 features.",
        paper="Xu et al., Nature 2024, doi:10.1038/s41586-024-07441-w",
        licence="Apache-2.0 (research use)",
        architecture="vit_giant_patch14_dinov2",
        arguments={"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334},
        files=("pytorch_model.bin",),
    ),
    Preset(
        name="phikon-v2",
        hub="owkin/phikon-v2",
        dim=1024,
        summary="Phikon-v2: ViT-L/16, DINOv2 on 58,000 public slides; 1,024 features.",
        paper="Filiot et al. 2024, arXiv:2409.09173",
        licence="Owkin non-commercial",
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1.0},
        gated=False,
        names=timm_names,
    ),
)


def build_network(preset: Preset) -> nn.Module:
    """The preset's network as timm builds it, without weights."""
    from . import torchvision_guard  # noqa: F401, I001  (before timm)
    import timm
    from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]

    gated_mlp = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if preset.swiglu else {}
    arguments = {"img_size": SIDE_PX, "num_classes": 0, **preset.arguments, **gated_mlp}
    network = timm.create_model(preset.architecture, pretrained=False, **arguments)
    assert isinstance(network, nn.Module)
    return network


def _build(preset: Preset, weights: Path | None, pretrained: bool, pool: str) -> Encoder:
    path = locate(preset.source, weights, pretrained)
    if path is None:
        network = seeded(lambda: build_network(preset))
    else:
        with torch.device("meta"):  # a billion random numbers less; load_state puts the file's tensors in
            network = build_network(preset)
        load_state(network, preset.names(read_state(path)), path)
    return Encoder(
        name=preset.name,
        module=frozen(pooled(network, pool, preset.name)),
        dim=preset.dim if pool == preset.pool else _width(network, pool),
        side_px=SIDE_PX,
        recommended_mpp=preset.mpp,
        mean=preset.colour[0],
        std=preset.colour[1],
        weights_digest=digest(path),
        interpolation=preset.interpolation,
    )


def _width(network: nn.Module, pool: str) -> int:
    width = network.num_features
    assert isinstance(width, int)
    return 2 * width if pool == "cls+mean" else width


def _register(preset: Preset) -> None:
    def source(_: str) -> Source:
        return preset.source

    def build(weights: Path | None, pretrained: bool, *, pool: str = preset.pool) -> Encoder:
        return _build(preset, weights, pretrained, pool)

    build.__doc__ = f"{preset.summary}\n\n``pool``: cls, mean or cls+mean of the tokens."
    encoders.register(
        preset.name,
        dim=preset.dim,
        side_px=SIDE_PX,
        recommended_mpp=preset.mpp,
        licence=preset.licence,
        paper=preset.paper,
        source=f"huggingface.co/{preset.hub}",
        hub=preset.hub,
        gated=preset.gated,
        weights=source,
    )(build)


for _preset in PRESETS:
    _register(_preset)
