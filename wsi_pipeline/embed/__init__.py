"""Patch encoders: from the pixels of a patch to a feature vector.

An encoder is built by name: ``encoders.build("resnet50", weights, pretrained, **options)``. ``weights`` is a local
file or None (the published weights, from this machine's caches or the network); ``pretrained=False`` gives the same
random weights each time, for smoke tests. A plug-in declares with its name: ``dim``, ``side_px``, ``recommended_mpp``,
``licence``, ``paper``, ``source``, ``hub`` (its id on the Hugging Face hub), ``gated``, and ``weights``: a function
from the text after the name's colon to the location of the published weights (``weights.Source``). Presets also
declare ``mean`` and ``std``.
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
    """A network with the properties of its input.

    Attributes
    ----------
    name : str
        Registered name.
    module : torch.nn.Module
        (B, 3, side_px, side_px) normalised float -> (B, dim); in eval mode, on the CPU.
    dim : int
        Number of features.
    side_px : int
        Side of the input in pixels; patches of another side are resized.
    recommended_mpp : float
        µm per pixel at which it was trained, or is commonly used.
    mean, std : (float, float, float)
        Normalisation of the (red, green, blue) pixels in 0..1.
    weights_digest : str
        sha256 of the weights file; ``random`` without one.
    interpolation : {"bilinear", "bicubic"}
        For patches of another side.
    """

    name: str
    module: nn.Module
    dim: int
    side_px: int
    recommended_mpp: float
    mean: Colour
    std: Colour
    weights_digest: str
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


encoders: Registry[Encoder] = Registry("encoder", "wsi_pipeline.embed")
