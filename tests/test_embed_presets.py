"""Presets: the published networks, and their authors' files with every name and shape."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline import torchvision_guard  # noqa: F401
from wsi_pipeline.embed import Encoder, encoders, stage
from wsi_pipeline.embed.identity import recommended_mpp
from wsi_pipeline.embed.layouts import on_grid, timm_names
from wsi_pipeline.embed.preset import Preset
from wsi_pipeline.embed.presets import PRESETS, build_network, register
from wsi_pipeline.embed.state import State, load_state
from wsi_pipeline.embed.token_pooling import pooled
from wsi_pipeline.errors import ArtifactError, ConfigError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrix products are small: threads would wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BY_NAME = {preset.name: preset for preset in PRESETS}
Shapes = dict[str, tuple[int, ...]]

PARAMETERS = {  # from their model cards, papers or file sizes, millions
    "uni": 303,
    "uni2-h": 681,
    "virchow": 631,
    "virchow2": 631,
    "h-optimus-0": 1135,
    "h-optimus-1": 1135,
    "h0-mini": 86,
    "gigapath": 1135,
    "gigapath-flash": 22,
    "mstar": 303,
    "digepath": 303,
    "kaiko-vits16": 22,
    "kaiko-vits8": 22,
    "kaiko-vitb16": 86,
    "kaiko-vitb8": 86,
    "kaiko-vitl14": 303,
    "lunit-vits16": 22,
    "lunit-vits8": 22,
    "phikon": 86,
    "phikon-v2": 303,
    "hibou-b": 86,
    "hibou-l": 304,
    "midnight": 1135,
    "gpfm": 303,
    "conch": 88,
    "conch-v1.5": 307,
    "ctranspath": 28,
    "retccl": 24,
}
OPEN = {"phikon", "phikon-v2", "midnight", "gpfm", "ctranspath", "retccl"}
NAMED = "uni uni2-h conch-v1.5 virchow2 gigapath h-optimus-0 h-optimus-1 h0-mini phikon-v2 hibou-l ctranspath midnight"


@functools.cache
def on_meta(name: str) -> nn.Module:
    """The network on torch's meta device, where a billion parameters take no memory; loading does not change it."""
    with torch.device("meta"):
        return build_network(BY_NAME[name])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_a_preset_is_the_published_network(preset: Preset) -> None:
    network = on_meta(preset.name)
    with torch.device("meta"):
        with_pooling = pooled(network, preset.pool, preset.name).eval()
        features: Tensor = with_pooling(torch.zeros(1, 3, preset.side_px, preset.side_px))
    assert features.shape == (1, preset.dim)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == PARAMETERS[preset.name]


def test_a_preset_declares_what_a_user_must_know() -> None:
    for preset in PRESETS:
        entry = encoders.entry(preset.name)
        assert entry.summary == preset.summary
        for fact in ("hub", "licence", "paper", "source"):
            assert entry.info[fact]
        assert entry.info["gated"] is not (preset.name in OPEN or preset.name.startswith(("kaiko", "lunit")))
        assert entry.info["recommended_mpp"] == (1.0 if preset.name in {"ctranspath", "retccl"} else 0.5)
        assert entry.info["side_px"] == {"conch": 448, "conch-v1.5": 448, "retccl": 256}.get(preset.name, 224)
        assert all(0 < value < 1 for value in (*entry.info["mean"], *entry.info["std"]))
        assert entry.options == {"pool": preset.pool}
        assert f"{preset.dim:,} features" in preset.summary


def test_the_widely_used_encoders_are_available() -> None:
    """Kaiko's, Lunit's, RetCCL and the truncated ResNet-50 besides those that are listed one by one."""
    names = set(encoders.names())
    assert {*NAMED.split(), "kaiko-vitb8", "lunit-vits8", "retccl", "resnet50_trunc"} <= names
    assert len(PRESETS) == len(BY_NAME) >= 20


def test_one_entry_adds_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_entries", dict(encoders._entries))
    register(
        replace(BY_NAME["kaiko-vits16"], name="ours", hub="lab/ours", architecture="test_vit", dim=64, side_px=160)
    )
    encoder = encoders.build("ours", None, False)
    with torch.inference_mode():
        assert encoder.module(torch.zeros(1, 3, 160, 160)).shape == (1, 64)


def test_another_resolution_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.getLogger("wsi_pipeline"), "propagate", True)
    resolutions = [(preset, factor * preset.mpp, factor != 1) for preset in PRESETS for factor in (1, 2)]
    for preset, target, warned in resolutions:
        recommended = recommended_mpp(preset.name, None, True, {})
        monkeypatch.setattr(stage, "read_grid", lambda path, target=target: (SimpleNamespace(target_mpp=target), None))
        caplog.clear()
        stage._warn_of_mpp(preset.name, recommended, Path("grid.h5"))
        assert (f"the encoder {preset.name} is made for {preset.mpp:g}" in caplog.text) is warned


# --- the authors' files --------------------------------------------------------------------------------------


def layer(name: str, outputs: int, inputs: int | None = None) -> Shapes:
    """A linear layer, or (without inputs) a normalisation."""
    return {f"{name}.weight": (outputs,) if inputs is None else (outputs, inputs), f"{name}.bias": (outputs,)}


def timm_vit(
    dim: int,
    depth: int,
    patch: int,
    positions: int,
    mlp: tuple[int, int],
    scale: bool = True,
    registers: int = 0,
    register_name: str = "reg_token",
    mlp_names: tuple[str, str] = ("fc1", "fc2"),
    mask: bool = False,
) -> Shapes:
    """timm's names; with ``register_tokens``, ``w12``, ``w3`` and a mask token those of DINOv2's own code."""
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, positions, dim)}
    shapes |= {register_name: (1, registers, dim)} if registers else {}
    shapes |= {"mask_token": (1, dim)} if mask else {}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= layer(f"{block}.norm1", dim) | layer(f"{block}.norm2", dim)
        shapes |= layer(f"{block}.attn.qkv", 3 * dim, dim) | layer(f"{block}.attn.proj", dim, dim)
        shapes |= layer(f"{block}.mlp.{mlp_names[0]}", mlp[0], dim) | layer(f"{block}.mlp.{mlp_names[1]}", dim, mlp[1])
        shapes |= {f"{block}.ls1.gamma": (dim,), f"{block}.ls2.gamma": (dim,)} if scale else {}
    return shapes | layer("norm", dim)


def dinov2_own(dim: int, depth: int, positions: int, registers: int, gated: int | None) -> Shapes:
    """facebookresearch/dinov2, patches of 14 px."""
    mlp, names = ((4 * dim, 4 * dim), ("fc1", "fc2")) if gated is None else ((2 * gated, gated), ("w12", "w3"))
    return timm_vit(dim, depth, 14, positions, mlp, True, registers, "register_tokens", names, mask=True)


def transformers_dinov2(
    dim: int, depth: int, patch: int, positions: int, registers: int = 0, gated: int | None = None
) -> Shapes:
    """Dinov2Model and Dinov2WithRegistersModel of transformers; ``gated``: hidden width of the SwiGLU."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.mask_token": (1, dim),
        "embeddings.position_embeddings": (1, positions, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (dim,),
    }
    shapes |= {"embeddings.register_tokens": (1, registers, dim)} if registers else {}
    for i in range(depth):
        block = f"encoder.layer.{i}"
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            shapes |= layer(f"{block}.{name}", dim, dim)
        shapes |= layer(f"{block}.attention.output.dense", dim, dim)
        shapes |= layer(f"{block}.norm1", dim) | layer(f"{block}.norm2", dim)
        shapes |= {f"{block}.layer_scale1.lambda1": (dim,), f"{block}.layer_scale2.lambda1": (dim,)}
        if gated is None:
            shapes |= layer(f"{block}.mlp.fc1", 4 * dim, dim) | layer(f"{block}.mlp.fc2", dim, 4 * dim)
        else:
            shapes |= layer(f"{block}.mlp.weights_in", 2 * gated, dim) | layer(f"{block}.mlp.weights_out", dim, gated)
    return shapes | layer("layernorm", dim)


def transformers_vit(dim: int, depth: int, positions: int) -> Shapes:
    """ViTModel of transformers, patches of 16 px."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.position_embeddings": (1, positions, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (dim,),
    }
    for i in range(depth):
        block = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            shapes |= layer(f"{block}.attention.attention.{name}", dim, dim)
        shapes |= layer(f"{block}.attention.output.dense", dim, dim)
        shapes |= layer(f"{block}.intermediate.dense", 4 * dim, dim) | layer(f"{block}.output.dense", dim, 4 * dim)
        shapes |= layer(f"{block}.layernorm_before", dim) | layer(f"{block}.layernorm_after", dim)
    return shapes | layer("layernorm", dim) | layer("pooler.dense", dim, dim)


def conch_file() -> Shapes:
    """CONCH: a CoCa of which the visual part is used; of the text part only some names."""
    trunk = timm_vit(768, 12, 16, 785, (3072, 3072), scale=False)
    shapes: Shapes = {f"visual.trunk.{name}": shape for name, shape in trunk.items()}
    for pool, dim, queries in (("contrast", 512, 1), ("caption", 768, 256)):
        at = f"visual.attn_pool_{pool}"
        shapes |= {f"{at}.query": (queries, dim), f"{at}.attn.in_proj_bias": (3 * dim,)}
        if dim == 768:  # as wide as its context: torch packs the three matrices
            shapes |= {f"{at}.attn.in_proj_weight": (3 * dim, dim)}
        else:
            shapes |= {f"{at}.attn.q_proj_weight": (dim, dim)}
            shapes |= {f"{at}.attn.k_proj_weight": (dim, 768), f"{at}.attn.v_proj_weight": (dim, 768)}
        shapes |= layer(f"{at}.attn.out_proj", dim, dim) | layer(f"{at}.ln_q", dim) | layer(f"{at}.ln_k", 768)
        shapes |= layer(f"visual.ln_{pool}", dim)
    shapes |= {"visual.proj_contrast": (512, 512), "logit_scale": (), "text.positional_embedding": (128, 768)}
    return shapes | {"text.token_embedding.weight": (32007, 768), "text_decoder.text_projection": (768, 32007)}


def conch_v1_5_file() -> Shapes:
    trunk = timm_vit(1024, 24, 16, 197, (4096, 4096))
    shapes: Shapes = {f"trunk.{name}": shape for name, shape in trunk.items()}
    at = "attn_pool_contrast"
    shapes |= {f"{at}.query": (1, 768), f"{at}.to_q.weight": (768, 768), f"{at}.to_kv.weight": (1536, 1024)}
    shapes |= {f"{at}.to_out.weight": (768, 768)} | layer(f"{at}.ln_q", 768) | layer(f"{at}.ln_k", 1024)
    return shapes | layer("ln_contrast", 768)


def ctranspath_file() -> Shapes:
    """timm 0.5.4's Swin-T at 224 px, with the stem."""

    def batch_norm(name: str, width: int) -> Shapes:
        running: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
        return layer(name, width) | running | {f"{name}.num_batches_tracked": ()}

    shapes: Shapes = {"patch_embed.proj.0.weight": (12, 3, 3, 3)} | batch_norm("patch_embed.proj.1", 12)
    shapes |= {"patch_embed.proj.3.weight": (24, 12, 3, 3)} | batch_norm("patch_embed.proj.4", 24)
    shapes |= {"patch_embed.proj.6.weight": (96, 24, 1, 1), "patch_embed.proj.6.bias": (96,)}
    shapes |= layer("patch_embed.norm", 96)
    for i, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
        dim, windows = 96 * 2**i, (8 // 2**i) ** 2
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            shapes |= layer(f"{block}.norm1", dim) | layer(f"{block}.norm2", dim)
            shapes |= layer(f"{block}.attn.qkv", 3 * dim, dim) | layer(f"{block}.attn.proj", dim, dim)
            shapes |= layer(f"{block}.mlp.fc1", 4 * dim, dim) | layer(f"{block}.mlp.fc2", dim, 4 * dim)
            shapes |= {f"{block}.attn.relative_position_bias_table": (169, heads)}
            shapes |= {f"{block}.attn.relative_position_index": (49, 49)}
            shapes |= {f"{block}.attn_mask": (windows, 49, 49)} if j % 2 and windows > 1 else {}
        if i < 3:
            shapes |= layer(f"layers.{i}.downsample.norm", 4 * dim)
            shapes |= {f"layers.{i}.downsample.reduction.weight": (2 * dim, 4 * dim)}
    return shapes | layer("norm", 768)


def resnet50_file() -> Shapes:
    """torchvision's ResNet-50 without its classifier, from before torch counted batches."""

    def convolution(conv: str, norm: str, outputs: int, inputs: int, side: int) -> Shapes:
        running: Shapes = {f"{norm}.running_mean": (outputs,), f"{norm}.running_var": (outputs,)}
        return {f"{conv}.weight": (outputs, inputs, side, side)} | layer(norm, outputs) | running

    shapes, inputs = convolution("conv1", "bn1", 64, 3, 7), 64
    for i, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for j in range(blocks):
            at = f"layer{i}.{j}"
            for number, outputs, before, side in (
                (1, width, inputs, 1),
                (2, width, width, 3),
                (3, 4 * width, width, 1),
            ):
                shapes |= convolution(f"{at}.conv{number}", f"{at}.bn{number}", outputs, before, side)
            if j == 0:
                shapes |= convolution(f"{at}.downsample.0", f"{at}.downsample.1", 4 * width, inputs, 1)
            inputs = 4 * width
    return shapes


def vit_s(patch: int, positions: int) -> Shapes:
    return timm_vit(384, 12, patch, positions, (1536, 1536), scale=False)


def vit_b(patch: int, positions: int) -> Shapes:
    return timm_vit(768, 12, patch, positions, (3072, 3072), scale=False)


VIT_L16 = timm_vit(1024, 24, 16, 197, (4096, 4096))
H_OPTIMUS = timm_vit(1536, 40, 14, 256, (8192, 4096), registers=4)
FILES: dict[str, list[Shapes]] = {  # the published file, and other files of the same encoder in use
    "uni": [VIT_L16],
    "uni2-h": [timm_vit(1536, 24, 14, 256, (8192, 4096), registers=8)],
    "virchow": [timm_vit(1280, 32, 14, 257, (6832, 3416))],
    "virchow2": [timm_vit(1280, 32, 14, 261, (6832, 3416), registers=4)],
    "h-optimus-0": [H_OPTIMUS],
    "h-optimus-1": [H_OPTIMUS],
    "h0-mini": [timm_vit(768, 12, 14, 256, (4096, 2048), registers=4)],
    "gigapath": [timm_vit(1536, 40, 16, 197, (8192, 4096))],
    "gigapath-flash": [timm_vit(384, 12, 16, 197, (2048, 1024))],
    "mstar": [VIT_L16],
    "digepath": [VIT_L16],
    "kaiko-vits16": [vit_s(16, 197)],
    "kaiko-vits8": [vit_s(8, 785)],
    "kaiko-vitb16": [vit_b(16, 197)],
    "kaiko-vitb8": [vit_b(8, 785)],
    "kaiko-vitl14": [timm_vit(1024, 24, 14, 1369, (4096, 4096), registers=4), dinov2_own(1024, 24, 1370, 4, None)],
    "lunit-vits16": [vit_s(16, 197)],
    "lunit-vits8": [vit_s(8, 785)],
    "phikon": [transformers_vit(768, 12, 197)],
    "phikon-v2": [transformers_dinov2(1024, 24, 16, 197)],
    "hibou-b": [transformers_dinov2(768, 12, 14, 257, 4, 2048), dinov2_own(768, 12, 257, 4, 2048)],
    "hibou-l": [transformers_dinov2(1024, 24, 14, 257, 4, 2736)],
    "midnight": [transformers_dinov2(1536, 40, 14, positions, 0, 4096) for positions in (257, 1370)],
    "gpfm": [timm_vit(1024, 24, 14, 257, (4096, 4096)), dinov2_own(1024, 24, 257, 0, None)],
    "conch": [conch_file()],
    "conch-v1.5": [conch_v1_5_file()],
    "ctranspath": [ctranspath_file()],
    "retccl": [resnet50_file()],
}


def drawn(shapes: Shapes, device: str = "cpu") -> State:
    """Random tensors of these shapes; variances are positive."""
    generator = None if device == "meta" else torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        state[name] = torch.randn(shape, generator=generator, device=device) * 0.1
        if name.endswith((".running_var", ".norm.weight", "_var")):
            state[name] = state[name].abs() + 0.5
    return state


@pytest.mark.parametrize(
    ("name", "shapes"),
    [(name, shapes) for name, files in FILES.items() for shapes in files],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_authors_file_fits_by_every_name(name: str, shapes: Shapes) -> None:
    preset = BY_NAME[name]
    load_state(on_meta(name), preset.names(drawn(shapes, "meta")), Path(name))


def test_every_preset_has_its_file() -> None:
    assert set(FILES) == set(BY_NAME)


@pytest.mark.parametrize(
    "name", ["phikon-v2", "hibou-b", "kaiko-vitl14", "conch", "conch-v1.5", "ctranspath", "retccl"]
)
def test_a_file_that_lacks_a_tensor_is_refused_with_its_name(name: str) -> None:
    preset, shapes = BY_NAME[name], dict(FILES[name][0])
    lost = [key for key in shapes if key.endswith(("fc1.weight", "weights_in.weight", "layer3.1.conv2.weight"))][-1]
    del shapes[lost]
    with pytest.raises(ArtifactError, match=r"does not fit this encoder: '[\w.]+' is missing in it") as caught:
        load_state(on_meta(name), preset.names(drawn(shapes, "meta")), Path("weights.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "other", "first"),
    [
        ("kaiko-vits16", "phikon", "'cls_token' is missing in it"),
        ("hibou-l", "hibou-b", "'cls_token' is (1, 1, 768), not (1, 1, 1024)"),
        ("phikon", "phikon-v2", "'cls_token' is (1, 1, 1024), not (1, 1, 768)"),
        ("midnight", "h-optimus-0", "'pos_embed' is (1, 256, 1536), not (1, 257, 1536)"),
        ("conch-v1.5", "uni", "'trunk.cls_token' is missing in it"),
        ("ctranspath", "retccl", "'patch_embed.proj.0.weight' is missing in it"),
        ("retccl", "ctranspath", "'conv1.weight' is missing in it"),
    ],
)
def test_the_file_of_another_encoder_is_refused_at_its_first_tensor(name: str, other: str, first: str) -> None:
    preset = BY_NAME[name]
    with pytest.raises(ArtifactError, match=re.escape(first)):
        load_state(on_meta(name), preset.names(drawn(FILES[other][0], "meta")), Path("weights.pth"))


# --- the same numbers: reference implementations under the authors' names -------------------------------------


def linear(x: Tensor, w: State, name: str) -> Tensor:
    return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(x: Tensor, w: State, name: str, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=eps)


def attention(qkv: Iterable[Tensor], heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """(B, T, C) each -> (B, T, C)."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in qkv)  # (B, heads, T, C / heads)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1)
    mixed: Tensor = (weights @ v).transpose(1, 2).flatten(2)
    return mixed


def reference_transformers(x: Tensor, w: State, depth: int, heads: int) -> Tensor:
    """Dinov2Model or ViTModel under transformers' names: (B, 3, s, s) -> (B, T, dim), registers after the class."""
    projection, at = w["embeddings.patch_embeddings.projection.weight"], "embeddings.patch_embeddings.projection.bias"
    x = functional.conv2d(x, projection, w[at], stride=projection.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], dim=1) + w["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in w:
        x = torch.cat([x[:, :1], w["embeddings.register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    vit = "encoder.layer.0.layernorm_before.weight" in w
    for i in range(depth):
        at = f"encoder.layer.{i}"
        y = norm(x, w, f"{at}.layernorm_before" if vit else f"{at}.norm1", 1e-6)
        y = attention((linear(y, w, f"{at}.attention.attention.{n}") for n in ("query", "key", "value")), heads)
        x = x + linear(y, w, f"{at}.attention.output.dense") * (1 if vit else w[f"{at}.layer_scale1.lambda1"])
        y = norm(x, w, f"{at}.layernorm_after" if vit else f"{at}.norm2", 1e-6)
        if vit:
            y = linear(functional.gelu(linear(y, w, f"{at}.intermediate.dense")), w, f"{at}.output.dense")
        elif f"{at}.mlp.weights_in.weight" in w:
            gate, value = linear(y, w, f"{at}.mlp.weights_in").chunk(2, dim=-1)
            y = linear(functional.silu(gate) * value, w, f"{at}.mlp.weights_out")
        else:
            y = linear(functional.gelu(linear(y, w, f"{at}.mlp.fc1")), w, f"{at}.mlp.fc2")
        x = x + y * (1 if vit else w[f"{at}.layer_scale2.lambda1"])
    return norm(x, w, "layernorm", 1e-6)


def small(name: str, **arguments: Any) -> tuple[Preset, nn.Module]:
    """A preset's network with two narrow blocks, on 2 x 2 patches."""
    preset = BY_NAME[name]
    side = 32 if preset.architecture.endswith("16_224") else 28
    shrunk = {**preset.arguments, "embed_dim": 32, "depth": 2, "num_heads": 2, **arguments}
    return preset, build_network(replace(preset, arguments=shrunk, side_px=side)).eval()


@pytest.mark.parametrize(
    ("name", "shapes", "arguments"),
    [
        ("phikon", transformers_vit(32, 2, 5), {}),
        ("phikon-v2", transformers_dinov2(32, 2, 16, 5), {}),
        ("hibou-b", transformers_dinov2(32, 2, 14, 5, 4, 88), {"mlp_ratio": 5.5}),
        ("midnight", transformers_dinov2(32, 2, 14, 5, 0, 88), {"mlp_ratio": 5.5}),
    ],
)
def test_transformers_files_give_the_features_of_transformers_networks(
    name: str, shapes: Shapes, arguments: dict[str, Any]
) -> None:
    preset, network = small(name, **arguments)
    state = drawn(shapes)
    load_state(network, timm_names(state), Path(name))
    side = 32 if name.startswith("phikon") else 28
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tokens = reference_transformers(x, state, depth=2, heads=2)
        prefix = 5 if name == "hibou-b" else 1
        expected = {"cls": [tokens[:, 0]], "cls+mean": [tokens[:, 0], tokens[:, prefix:].mean(dim=1)]}[preset.pool]
        torch.testing.assert_close(
            pooled(network, preset.pool, name)(x), torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5
        )


def test_dinov2s_own_file_gives_the_features_of_transformers_file() -> None:
    """Hibou-B is published under both layouts."""
    _, network = small("hibou-b", mlp_ratio=5.5)
    state = drawn(transformers_dinov2(32, 2, 14, 5, 4, 88))
    own = {
        "cls_token": state["embeddings.cls_token"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "register_tokens": state["embeddings.register_tokens"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for i in range(2):
        theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
        for leaf in ("weight", "bias"):
            parts = [state[f"{theirs}.attention.attention.{n}.{leaf}"] for n in ("query", "key", "value")]
            own[f"{ours}.attn.qkv.{leaf}"] = torch.cat(parts)
            own[f"{ours}.attn.proj.{leaf}"] = state[f"{theirs}.attention.output.dense.{leaf}"]
            own[f"{ours}.mlp.w12.{leaf}"] = state[f"{theirs}.mlp.weights_in.{leaf}"]
            own[f"{ours}.mlp.w3.{leaf}"] = state[f"{theirs}.mlp.weights_out.{leaf}"]
            for n in ("norm1", "norm2"):
                own[f"{ours}.{n}.{leaf}"] = state[f"{theirs}.{n}.{leaf}"]
        own[f"{ours}.ls1.gamma"] = state[f"{theirs}.layer_scale1.lambda1"]
        own[f"{ours}.ls2.gamma"] = state[f"{theirs}.layer_scale2.lambda1"]
    assert set(own) == set(dinov2_own(32, 2, 5, 4, 88))
    first, second = timm_names(own), timm_names(state)
    assert set(first) == set(second) == set(network.state_dict())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_positions_are_interpolated_as_timm_does_at_every_call() -> None:
    """A network made for 4 x 4 patches gets 2 x 2; ours has 2 x 2 positions from the start."""
    import timm

    arguments: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    large = timm.create_model("vit_large_patch14_reg4_dinov2", img_size=56, dynamic_img_size=True, **arguments).eval()
    made = timm.create_model("vit_large_patch14_reg4_dinov2", img_size=28, **arguments).eval()
    load_state(made, timm_names(large.state_dict(), cells=2, antialias=True), Path("kaiko"))
    x = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(made(x), large(x))


def test_positions_of_the_same_grid_or_of_no_square_grid_are_unchanged() -> None:
    positions = torch.randn(1, 1 + 196, 8)
    assert on_grid(positions, 14) is positions
    assert on_grid(positions[:, 2:], 14).shape == (1, 195, 8)  # load_state reports it
    assert torch.equal(on_grid(positions, 28)[:, 0], positions[:, 0])


def test_conchs_pooler_is_the_attention_of_one_query() -> None:
    preset, network = small_tower("conch")
    state = drawn({name: shape for name, shape in small_tower_file(conch_file()).items() if "caption" not in name})
    load_state(network, preset.names(state), Path("conch"))
    x = torch.randn(2, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    w = {name.removeprefix("visual."): tensor for name, tensor in state.items()}
    at = "attn_pool_contrast"
    with torch.inference_mode():
        tokens = norm(network.trunk.forward_features(x), w, f"{at}.ln_k", 1e-5)  # type: ignore[union-attr, operator]
        query = norm(w[f"{at}.query"], w, f"{at}.ln_q", 1e-5).expand(2, 1, -1)
        biases = w[f"{at}.attn.in_proj_bias"].chunk(3)
        weights = [w[f"{at}.attn.{n}_proj_weight"] for n in "qkv"]
        parts = zip((query, tokens, tokens), weights, biases, strict=True)
        attended = attention((functional.linear(*part) for part in parts), heads=8)
        expected = norm(linear(attended[:, 0], w, f"{at}.attn.out_proj"), w, "ln_contrast", 1e-5)
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


def test_conch_v1_5s_pooler_is_the_attention_of_one_query() -> None:
    preset, network = small_tower("conch-v1.5")
    state = drawn(small_tower_file(conch_v1_5_file()))
    load_state(network, preset.names(state), Path("conch-v1.5"))
    x = torch.randn(2, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    at = "attn_pool_contrast"
    with torch.inference_mode():
        tokens = norm(network.trunk.forward_features(x), state, f"{at}.ln_k", 1e-5)  # type: ignore[union-attr, operator]
        key, value = linear(tokens, state, f"{at}.to_kv").chunk(2, dim=-1)
        query = linear(norm(state[f"{at}.query"], state, f"{at}.ln_q", 1e-5), state, f"{at}.to_q").expand(2, 1, -1)
        attended = linear(attention((query, key, value), heads=8)[:, 0], state, f"{at}.to_out")
        torch.testing.assert_close(network(x), norm(attended, state, "ln_contrast", 1e-5), atol=1e-5, rtol=1e-5)


def test_conch_v1_5s_positions_of_224_px_are_interpolated_to_448() -> None:
    """Its code interpolates 14 cells to 28.1, as DINO's does, and keeps 28."""
    positions = drawn({"trunk.pos_embed": (1, 197, 6)})
    grid = positions["trunk.pos_embed"][:, 1:].reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid, scale_factor=(28.1 / 14, 28.1 / 14), mode="bicubic")
    made = BY_NAME["conch-v1.5"].names(positions)["trunk.pos_embed"]
    assert made.shape == (1, 785, 6)
    torch.testing.assert_close(made[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 784, 6))
    assert torch.equal(made[:, 0], positions["trunk.pos_embed"][:, 0])


def small_tower(name: str) -> tuple[Preset, nn.Module]:
    preset = BY_NAME[name]
    arguments = {**preset.arguments, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return preset, preset.build(replace(preset, arguments=arguments, dim=16)).eval()


def small_tower_file(shapes: Shapes) -> Shapes:
    """One block; 32 wide instead of 768 or 1,024, 16 features instead of 512 or 768."""
    wide = {768: 32, 3072: 128, 2304: 96, 512: 16, 1536: 48}
    if "trunk.norm.weight" in shapes:  # CONCH v1.5
        wide = {1024: 32, 4096: 128, 3072: 96, 768: 16, 1536: 32}
    kept = {name: shape for name, shape in shapes.items() if "blocks" not in name or "blocks.0." in name}
    return {
        name: tuple(
            wide.get(side, side) if name.startswith(("visual", "trunk", "attn", "ln")) else side for side in shape
        )
        for name, shape in kept.items()
        if not name.startswith("text")
    }


# --- CTransPath and RetCCL: real weights files ----------------------------------------------------------------


def windows(grid: Tensor) -> Iterator[tuple[slice, slice]]:
    for top in range(0, grid.shape[1], 7):
        for left in range(0, grid.shape[2], 7):
            yield slice(top, top + 7), slice(left, left + 7)


def window_bias(table: Tensor) -> Tensor:
    """(169, heads) of relative places -> (heads, 49, 49)."""
    places = [(a // 7 - b // 7 + 6) * 13 + a % 7 - b % 7 + 6 for a in range(49) for b in range(49)]
    bias: Tensor = table[places].unflatten(0, (49, 49)).permute(2, 0, 1)
    return bias


def reference_ctranspath(x: Tensor, w: State) -> Tensor:
    """Liu et al.'s Swin-T behind three convolutions, under timm 0.5.4's names: (1, 3, 224, 224) -> (1, 768)."""
    for conv, bn in ((0, 1), (3, 4)):
        at = f"patch_embed.proj.{bn}"
        x = functional.conv2d(x, w[f"patch_embed.proj.{conv}.weight"], stride=2, padding=1)
        mean, variance = w[f"{at}.running_mean"], w[f"{at}.running_var"]
        x = functional.batch_norm(x, mean, variance, w[f"{at}.weight"], w[f"{at}.bias"], eps=1e-5).relu()
    x = functional.conv2d(x, w["patch_embed.proj.6.weight"], w["patch_embed.proj.6.bias"]).permute(0, 2, 3, 1)
    x = norm(x, w, "patch_embed.norm", 1e-5)  # (1, 56, 56, 96)
    for i, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
        for j in range(depth):
            at, shift = f"layers.{i}.blocks.{j}", 3 if j % 2 and x.shape[1] > 7 else 0
            y = norm(x, w, f"{at}.norm1", 1e-5).roll((-shift, -shift), (1, 2))
            region = torch.zeros(1, *y.shape[1:3])  # tokens that were not neighbours before the roll are masked
            if shift:
                region[:, -7:-3, :] += 1
                region[:, -3:, :] += 2
                region[:, :, -7:-3] += 3
                region[:, :, -3:] += 6
            bias = window_bias(w[f"{at}.attn.relative_position_bias_table"])
            out = torch.empty_like(y)
            for rows, columns in windows(y):
                tokens = y[:, rows, columns].flatten(1, 2)  # (1, 49, C)
                label = region[0, rows, columns].flatten()
                apart = torch.where(label[:, None] == label[None, :], 0.0, -100.0)
                qkv = linear(tokens, w, f"{at}.attn.qkv").chunk(3, dim=-1)
                mixed = linear(attention(qkv, heads, bias + apart), w, f"{at}.attn.proj")
                out[:, rows, columns] = mixed.unflatten(1, (7, 7))
            x = x + out.roll((shift, shift), (1, 2))
            y = functional.gelu(linear(norm(x, w, f"{at}.norm2", 1e-5), w, f"{at}.mlp.fc1"))
            x = x + linear(y, w, f"{at}.mlp.fc2")
        if i < 3:
            quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = norm(torch.cat(quarters, dim=-1), w, f"layers.{i}.downsample.norm", 1e-5)
            x = functional.linear(x, w[f"layers.{i}.downsample.reduction.weight"])
    return norm(x, w, "norm", 1e-5).mean(dim=(1, 2))


def built(name: str, content: object, folder: Path) -> Encoder:
    path = folder / "weights.pth"
    torch.save(content, path)
    return encoders.build(name, path, True)


def test_ctranspath_computes_the_network_of_its_file(tmp_path: Path) -> None:
    state = drawn(ctranspath_file())
    for name in state:  # keep random numbers from growing through the blocks
        if name.endswith(("fc2.weight", "attn.proj.weight")):
            state[name] *= 0.2
    encoder = built("ctranspath", {"model": state}, tmp_path)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = encoder.module(x)
        torch.testing.assert_close(features, reference_ctranspath(x, state), atol=1e-3, rtol=1e-3)
    assert features.std() > 0.1


def test_ctranspath_accepts_current_timm_names_too() -> None:
    """As in copies on the hub."""
    old = drawn(ctranspath_file(), "meta")
    names = BY_NAME["ctranspath"].names
    assert set(names(names(old))) == set(names(old))
    assert "layers.3.downsample.reduction.weight" in names(old)
    assert "layers.0.downsample.reduction.weight" not in names(old)


def test_retccl_computes_torchvisions_network(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    state = drawn(resnet50_file())
    with torch.device("meta"):
        network = resnet50(weights=None).eval()
    network.fc = nn.Identity()
    load_state(network, state, Path("retccl"))
    encoder = built("retccl", state, tmp_path)
    assert (encoder.side_px, encoder.recommended_mpp) == (256, 1.0)
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.module(x), network(x))


def test_a_small_transformer_computes_timms_network(tmp_path: Path) -> None:
    import timm

    state = drawn(FILES["kaiko-vits16"][0])
    with torch.device("meta"):
        network = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    network.load_state_dict(state, assign=True)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(built("kaiko-vits16", state, tmp_path).module(x), network(x))


@pytest.mark.parametrize("name", ["conch", "ctranspath", "retccl"])
def test_a_network_without_a_class_token_cannot_be_pooled_by_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"leave encoder_options\.pool out"):
        pooled(on_meta(name), "cls", name)
