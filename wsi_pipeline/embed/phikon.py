"""Phikon-v2's tensors under timm's names.

Its file follows the Dinov2Model of Hugging Face's transformers (A. Filiot et al. 2024, arXiv:2409.09173): query, key
and value lie apart where timm keeps them in one matrix, and the mask token is of use in training only.
"""

from __future__ import annotations

import re

import torch

from .state import State

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_UNUSED = "embeddings.mask_token"
_QKV = "attention.attention"


def timm_names(state: State) -> State:
    """The names of transformers' Dinov2Model as timm's; a state that has timm's names already is given back."""
    if "embeddings.cls_token" not in state:
        return state
    renamed: State = {}
    for name, tensor in state.items():
        if name == _UNUSED or f".{_QKV}.key." in name or f".{_QKV}.value." in name:
            continue
        if f".{_QKV}.query." in name:
            parts = [state.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            joined = [part for part in parts if part is not None]
            renamed[_block_name(name.replace(f"{_QKV}.query", "attn.qkv"))] = torch.cat(joined)
        else:
            renamed[_TOP.get(name) or _block_name(name)] = tensor
    return renamed


def _block_name(name: str) -> str:
    name = re.sub(r"^encoder\.layer\.(\d+)\.", r"blocks.\1.", name)
    for old, new in _BLOCK.items():
        name = name.replace(old, new)
    return name
