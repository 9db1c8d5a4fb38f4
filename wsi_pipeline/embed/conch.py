"""CONCH's image towers: a vision transformer whose tokens are pooled by the attention of one learned query.

M. Lu et al., A visual-language foundation model for computational pathology, Nature Medicine 2024 (CONCH); T. Ding et
al., A multimodal whole-slide foundation model for pathology, Nature Medicine 2025 (CONCH v1.5, TITAN's patch encoder).
The features are those before the projection into the space shared with text; the authors use them for slides. CONCH's
file also contains the text tower, the captioner and that projection, which are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layouts import on_grid
from .preset import Preset, timm_network
from .state import State

_HEADS = 8
_OTHER_TOWERS = ("text.", "text_decoder.", "logit_scale", "visual.attn_pool_caption.", "visual.ln_caption.")
_PROJECTION = "visual.proj_contrast"


class QueryPool(nn.Module):
    """CONCH's pooler: (B, T, context) -> (B, dim)."""

    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.attn = nn.MultiheadAttention(dim, _HEADS, kdim=context, vdim=context, batch_first=True)
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(context)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)  # (B, 1, dim)
        pooled: Tensor = self.attn(query, tokens, tokens, need_weights=False)[0]
        return pooled[:, 0]


class PlainQueryPool(nn.Module):
    """CONCH v1.5's pooler, whose projections have no bias: (B, T, context) -> (B, dim)."""

    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(context)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)  # (B, 1, dim)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)  # (B, T, dim) each
        heads = [part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        pooled = functional.scaled_dot_product_attention(*heads)  # (B, heads, 1, dim / heads)
        return cast(Tensor, self.to_out(pooled.transpose(1, 2).flatten(1)))


class Tower(nn.Module):
    """(B, 3, s, s) -> (B, dim); the attributes are named as in the file."""

    def __init__(self, trunk: nn.Module, pool: nn.Module, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = pool
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, patches: Tensor) -> Tensor:
        tokens = cast(Callable[[Tensor], Tensor], self.trunk.forward_features)(patches)  # (B, T, context)
        return cast(Tensor, self.ln_contrast(self.attn_pool_contrast(tokens)))


def conch(preset: Preset) -> nn.Module:
    """Build CONCH's image tower, without weights."""
    trunk = timm_network(preset)
    return Tower(trunk, QueryPool(preset.dim, cast(int, trunk.num_features)), preset.dim)


def conch_v1_5(preset: Preset) -> nn.Module:
    """Build CONCH v1.5, without weights."""
    trunk = timm_network(preset)
    return Tower(trunk, PlainQueryPool(preset.dim, cast(int, trunk.num_features)), preset.dim)


def image_tower(state: State) -> State:
    """The image tower's tensors of CONCH's file, position embeddings interpolated to 448 px as in its code."""
    kept = {
        name.removeprefix("visual."): tensor
        for name, tensor in state.items()
        if name != _PROJECTION and not name.startswith(_OTHER_TOWERS)
    }
    if "trunk.pos_embed" in kept:
        kept["trunk.pos_embed"] = on_grid(kept["trunk.pos_embed"], 28, mode="bilinear")
    return kept


def at_448(state: State) -> State:
    """Interpolate the position embeddings of CONCH v1.5's file from 224 to 448 px: once, not at every call as its code.

    A state without ``trunk.pos_embed`` is returned unchanged.
    """
    if "trunk.pos_embed" not in state:
        return state
    return {**state, "trunk.pos_embed": on_grid(state["trunk.pos_embed"], 28, offset=0.1)}
