"""Patch encoders: the pixels of one patch in, one feature vector out.

An encoder is built by name: ``encoders.build("resnet50", weights, pretrained, **options)``. ``weights`` is a local
file or None (the published weights, from this machine's caches or the network); ``pretrained=False`` gives the same
random weights each time, for trying the way only. What a plug-in declares beside its name: ``dim``, ``side_px``,
``recommended_mpp``, ``licence``, ``paper``, ``source``, ``hub`` (its id on the Hugging Face hub), ``gated``, and
``weights``: what follows the name's colon -> where its published weights lie (``weights.Source``). Presets add
``mean`` and ``std``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..registry import Registry

if TYPE_CHECKING:
    from torch import nn

Colour = tuple[float, float, float]  # (red, green, blue)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network with everything that is needed to feed it."""

    name: str
    module: nn.Module  # normalised float (B, 3, side_px, side_px) -> (B, dim); in eval mode, on the CPU
    dim: int
    side_px: int
    recommended_mpp: float  # µm per pixel it was trained at, or is commonly used at
    mean: Colour  # of pixels in 0..1
    std: Colour
    weights_digest: str  # sha256 of the weights file; "random" without one
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # for patches of another side


encoders: Registry[Encoder] = Registry("encoder", "wsi_pipeline.embed")
