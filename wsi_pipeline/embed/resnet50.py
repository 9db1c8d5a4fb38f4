"""ResNet-50 with ImageNet weights, complete and truncated after its third stage.

K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016. The weights are torchvision's first set
(``IMAGENET1K_V1``, 76.1 % top-1), not the second: the published slide models (CLAM, TransMIL, DSMIL, DTFD-MIL) were
trained on features of the first, so results stay comparable. The network accepts inputs of any side; it was trained
at 224 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from . import Encoder, encoders
from .state import frozen, load_state, read_state, seeded
from .weights import Source, UrlFile, digest, locate

_WEIGHTS = UrlFile("https://download.pytorch.org/models/resnet50-0676ba61.pth")  # IMAGENET1K_V1
_HEAD = ("fc.",)
_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")


def _source(_: str) -> Source:
    return _WEIGHTS


_INFO: dict[str, Any] = {
    "side_px": 224,
    "recommended_mpp": 0.5,
    "licence": "BSD-3-Clause (weights: trained on ImageNet, research context)",
    "paper": "He et al., CVPR 2016",
    "source": _WEIGHTS.url,
    "hub": None,
    "gated": False,
    "weights": _source,
}


@encoders.register("resnet50", dim=2048, **_INFO)
def resnet50(weights: Path | None, pretrained: bool) -> Encoder:
    """ResNet-50, ImageNet (torchvision V1): the pooled last stage, 2,048 features."""
    path = locate(_WEIGHTS, weights, pretrained)
    module = _whole(path)
    return _encoder("resnet50", module, 2048, path)


@encoders.register("resnet50_trunc", dim=1024, **_INFO)
def resnet50_trunc(weights: Path | None, pretrained: bool) -> Encoder:
    """ResNet-50 truncated after its third stage, pooled, 1,024 features: the encoder of CLAM (Lu et al. 2021)."""
    path = locate(_WEIGHTS, weights, pretrained)
    whole = _whole(path)
    stages = [whole.get_submodule(name) for name in _STAGES]
    module = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (B, 1024, s/16, s/16) -> (B, 1024)
    return _encoder("resnet50_trunc", module, 1024, path)


def _whole(path: Path | None) -> nn.Module:
    from .. import torchvision_guard  # noqa: F401, I001  (before torchvision)
    from torchvision.models import resnet50 as build

    module = seeded(lambda: build(weights=None))
    module.fc = nn.Identity()
    if path is not None:
        load_state(module, read_state(path), path, dropped=_HEAD)
    return module


def _encoder(name: str, module: nn.Module, dim: int, path: Path | None) -> Encoder:
    return Encoder(
        name=name,
        module=frozen(module),
        dim=dim,
        side_px=224,
        recommended_mpp=0.5,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights_digest=digest(path),
        interpolation="bilinear",
    )
