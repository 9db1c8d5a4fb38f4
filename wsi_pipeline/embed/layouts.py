"""Conversion of vision transformers that other programs saved to timm's tensor names.

Two layouts besides timm's own are read. ``transformers`` (ViTModel; Dinov2Model, with or without register tokens):
query, key and value are separate, while timm keeps them in one matrix. DINOv2's own code: blocks as in timm, the gated
MLP as w12 and w3. Both add a position embedding to the class token, which timm's networks with registers do not; here
it is added to the class token once. A mask token and a pooler are used in training only and are left out.
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
_TRANSFORMERS_BLOCK = {  # the name between the block's number and weight or bias
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
    """Rename the tensors of any of the three layouts as in timm; a state with timm's names is kept.

    Parameters
    ----------
    state : dict of str to Tensor
        The file's tensors.
    cells : int, optional
        Patches along a side of the network's input; position embeddings of another grid are interpolated to it.
    antialias : bool
        True: interpolate as timm does at every call of a network made for another side; False: as transformers does.

    Returns
    -------
    dict of str to Tensor
        The tensors under timm's names.
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
    """Interpolate position embeddings to another grid of patches.

    Parameters
    ----------
    positions : Tensor, (1, prefix + n², C)
        Position embeddings; a number of patches that is not a square is returned unchanged.
    cells : int
        Patches along a side of the new grid.
    prefix : int
        Number of embeddings of the class token, which are kept.
    mode, antialias
        See ``torch.nn.functional.interpolate``.
    offset : float
        DINO's offset, added to ``cells`` in the scale only.

    Returns
    -------
    Tensor, (1, prefix + cells², C)
        The interpolated embeddings.
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
        return name  # unknown: load_state reports it
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
    """Add the class token's position embedding to it: timm's networks with registers have them for patches only."""
    if {"reg_token", "cls_token", "pos_embed"} <= set(state):
        positions = state["pos_embed"]  # (1, 1 + n², C)
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state
