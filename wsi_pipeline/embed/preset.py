"""Published properties of a pathology encoder, and how timm builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from . import Colour
from .state import State
from .weights import HubFile, Source

IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std
HALF: tuple[Colour, Colour] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _same(state: State) -> State:
    return state


def timm_network(preset: Preset, **more: Any) -> nn.Module:
    """Build the preset's transformer with timm, without weights; ``more``: arguments of ``timm.create_model``."""
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]

    gated_mlp = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if preset.swiglu else {}
    return _create(preset, img_size=preset.side_px, **gated_mlp, **more)


def timm_cnn(preset: Preset) -> nn.Module:
    """Build the preset's convolutional network with timm, without weights; it accepts inputs of any side."""
    return _create(preset)


def _create(preset: Preset, **more: Any) -> nn.Module:
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    import timm

    network = timm.create_model(preset.architecture, pretrained=False, **{"num_classes": 0, **more, **preset.arguments})
    assert isinstance(network, nn.Module)
    return network


@dataclass(frozen=True)
class Preset:
    """One published encoder."""

    name: str
    hub: str  # id on the Hugging Face hub
    dim: int
    summary: str
    paper: str
    licence: str
    architecture: str  # in timm
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of timm.create_model, except img_size and num_classes
    pool: str = "cls"  # as its authors use it; ``model``: the network's own pooling
    swiglu: bool = False  # packed SwiGLU instead of the plain MLP
    colour: tuple[Colour, Colour] = IMAGENET  # mean, std
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    side_px: int = 224
    mpp: float = 0.5  # of the patches, before they are resized to side_px
    gated: bool = True
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    names: Callable[[State], State] = field(default=_same)  # the file's tensor names -> the network's
    build: Callable[[Preset], nn.Module] = field(default=timm_network)

    @property
    def source(self) -> Source:
        """Location of its weights."""
        return HubFile(self.hub, self.files, self.gated)
