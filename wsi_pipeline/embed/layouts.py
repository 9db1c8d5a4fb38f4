"""Tensors of vision transformers that other programs saved, under timm's names.

Two layouts beside timm's own are read. ``transformers`` (ViTModel; Dinov2Model, with or without register tokens):
query, key and value lie apart where timm keeps them in one matrix. DINOv2's own code: blocks as in timm, the gated MLP
as w12 and w3. Both add a position to the class token where timm's networks with registers do not; it is added to the
class token here, once. A mask token and a pooler are of use in training only and are left out.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .state import State

_TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_TRANSFORMERS_BLOCK = {  # what stands between the block's number and weight or bias
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_DINOV2 = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
_UNUSED = ("embeddings.mask_token", "mask_token", "pooler.dense.weight", "pooler.dense.bias")
_QKV = "attention.attention"


def timm_names(state: State, cells: int | None = None, antialias: bool = False) -> State:
    """Any of the three layouts under timm's names; a state that has timm's names already is given back.

    ``cells``: patches along a side of the network's input; positions of another grid are interpolated to it, with
    ``antialias`` as timm does at every call of a network that it has made for another side, without as transformers.
    """
    if "embeddings.cls_token" in state:
        renamed = _of_transformers(state)
    elif "register_tokens" in state or "mask_token" in state:
        renamed = _of_dinov2(state)
    else:
        renamed = dict(state)
    if cells is not None and "pos_embed" in renamed:
        prefix = 0 if "reg_token" in renamed else 1
        renamed["pos_embed"] = on_grid(renamed["pos_embed"], cells, prefix=prefix, antialias=antialias)
    return renamed


def on_grid(
    positions: Tensor,
    cells: int,
    *,
    prefix: int = 1,
    mode: Literal["bilinear", "bicubic"] = "bicubic",
    antialias: bool = False,
    offset: float = 0.0,
) -> Tensor:
    """Position embeddings (1, prefix + n², C) interpolated to (1, prefix + cells², C); no square is given back as is.

    ``prefix``: class token's embeddings, which stay. ``offset``: DINO's, added to ``cells`` in the scale only.
    """
    first, grid = positions[:, :prefix], positions[:, prefix:]
    side = math.isqrt(grid.shape[1])
    if side in (0, cells) or side * side != grid.shape[1]:
        return positions
    grid = grid.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, n, n)
    size, scale = ((cells, cells), None) if offset == 0 else (None, (cells + offset) / side)
    grid = functional.interpolate(grid, size, scale, mode, align_corners=False, antialias=antialias)
    return torch.cat([first.float(), grid.flatten(2).transpose(1, 2)], dim=1)


def _of_transformers(state: State) -> State:
    renamed: State = {}
    for name, tensor in state.items():
        if name in _UNUSED or f".{_QKV}.key." in name or f".{_QKV}.value." in name:
            continue
        if f".{_QKV}.query." in name:
            parts = [state.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            joined = [part for part in parts if part is not None]
            renamed[_block_name(name.replace(f"{_QKV}.query", "attn.qkv"))] = torch.cat(joined)
        else:
            renamed[_TRANSFORMERS.get(name) or _block_name(name)] = tensor
    return _without_class_position(renamed)


def _block_name(name: str) -> str:
    block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
    if block is None:
        return name  # no place for it: load_state names it
    layer, _, leaf = block[2].rpartition(".")
    rest = _TRANSFORMERS_BLOCK.get(block[2]) or f"{_TRANSFORMERS_BLOCK.get(layer, layer)}.{leaf}"
    return f"blocks.{block[1]}.{rest}"


def _of_dinov2(state: State) -> State:
    renamed: State = {}
    for name, tensor in state.items():
        if name in _UNUSED:
            continue
        new = "reg_token" if name == "register_tokens" else name
        for old, layer in _DINOV2.items():
            new = new.replace(old, layer)
        renamed[new] = tensor
    return _without_class_position(renamed)


def _without_class_position(state: State) -> State:
    """timm's networks with registers give positions to patches only: the class token's moves into the class token."""
    if {"reg_token", "cls_token", "pos_embed"} <= set(state):
        positions = state["pos_embed"]  # (1, 1 + n², C)
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state
