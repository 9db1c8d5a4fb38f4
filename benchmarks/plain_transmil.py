"""TransMIL as published, on the `nystrom-attention` package: the reference of benchmarks/mil.py.

Shao et al., "TransMIL: Transformer based Correlated MIL for Whole Slide Image Classification", NeurIPS 2021. Every
token goes through both layers, Nystrom's two long matrices are stored, and the three kernels of PPEG are three passes.
The parameter names are those of the published weights and of our implementation, so both can load the same weights.
"""

from __future__ import annotations

import math

import torch
from nystrom_attention import NystromAttention
from torch import Tensor, nn

HIDDEN = 512


class PlainTransMIL(nn.Module):
    """Features (N, dim) -> logits (C,)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self._fc1 = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.layer1 = PlainLayer()
        self.pos_layer = PlainPPEG()
        self.layer2 = PlainLayer()
        self.norm = nn.LayerNorm(HIDDEN)
        self._fc2 = nn.Linear(HIDDEN, classes)

    def forward(self, features: Tensor) -> Tensor:
        patches = self._fc1(features[None])  # (1, N, HIDDEN)
        side = math.ceil(math.sqrt(len(features)))
        square = torch.cat([patches, patches[:, : side**2 - len(features)]], dim=1)  # (1, side², HIDDEN)
        tokens = self.layer1(torch.cat([self.cls_token, square], dim=1))
        tokens = self.layer2(self.pos_layer(tokens, side))
        logits: Tensor = self._fc2(self.norm(tokens)[0, 0])
        return logits


class PlainLayer(nn.Module):
    """Pre-norm Nystrom attention with a skip connection, (1, T, HIDDEN) -> (1, T, HIDDEN)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.attn = NystromAttention(
            dim=HIDDEN, dim_head=64, heads=8, num_landmarks=256, pinv_iterations=6, residual=True, dropout=0.1
        )

    def forward(self, tokens: Tensor) -> Tensor:
        attended: Tensor = self.attn(self.norm(tokens))
        return tokens + attended


class PlainPPEG(nn.Module):
    """Three depthwise convolutions of the square of tokens, added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(HIDDEN, HIDDEN, 7, padding=3, groups=HIDDEN)
        self.proj1 = nn.Conv2d(HIDDEN, HIDDEN, 5, padding=2, groups=HIDDEN)
        self.proj2 = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        image = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (1, HIDDEN, side, side)
        image = image + self.proj(image) + self.proj1(image) + self.proj2(image)
        return torch.cat([tokens[:, :1], image.flatten(2).transpose(1, 2)], dim=1)
