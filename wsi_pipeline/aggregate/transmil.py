"""TransMIL: a two-layer transformer over all patches of a slide."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from . import MILOutput, models
from .model_options import check_choice, check_counts, check_dropout
from .nystrom import TokenAttention
from .ppeg import PPEG


class AttentionShares(NamedTuple):
    """Where the class token looks in the last layer, mean over heads. The parts add up to the whole row.

    The row's sum is 1 with exact attention; with Nystrom it is near 1, and single shares may be slightly negative.
    """

    patches: Tensor  # (N,) a repeated patch has its copies' shares
    class_token: Tensor  # () what it gives to itself
    padding: Tensor  # () what zero padding in front of the sequence takes


class TransLayer(nn.Module):
    """Pre-norm attention with a skip connection."""

    def __init__(self, dim: int, attention: TokenAttention) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = attention

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, dim) -> (T, dim)."""
        output: Tensor = tokens + self.attn(self.norm(tokens))
        return output

    def first_token(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token 0 of ``forward``, (dim,), and its attention row (P,)."""
        attended, row = self.attn.first_token(self.norm(tokens))
        return tokens[0] + attended, row


class TransMIL(nn.Module):
    """Shao et al., "TransMIL: Transformer based Correlated MIL for Whole Slide Image Classification", NeurIPS 2021.

    Linear and ReLU; class token; attention layer; PPEG; attention layer; LayerNorm; class token; linear. The default
    options are the published model, parameter names included. The published square is filled up with the first
    patches again and follows the order of the list, not the tissue.

    Deviations: ``position="grid"`` runs PPEG on the patches' own positions and repeats no patch (the attention's value
    convolution still runs along the list); ``attention="exact"`` is softmax attention with the same parameters, its
    value convolution kept. Same function, other arithmetic: attention is factored into fused calls, PPEG's kernels
    are added up first, and the last layer computes the class token only, since nothing else of it is read, without
    values, which are linear in the tokens.
    """

    def __init__(
        self, dim: int, classes: int, hidden: int, grid: bool, attention: tuple[TokenAttention, TokenAttention]
    ) -> None:
        super().__init__()
        self.grid = grid
        self._fc1 = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(1, 1, hidden))
        self.pos_layer = PPEG(hidden)
        self.layer1 = TransLayer(hidden, attention[0])
        self.layer2 = TransLayer(hidden, attention[1])
        self.norm = nn.LayerNorm(hidden)
        self._fc2 = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        """Logits (C,) and attention (N,), without gradient: the patches' shares over their sum.

        With Nystrom attention the entries approximate softmax attention and may be slightly negative.
        """
        class_token, row = self._class_token(features, xy)
        shares = self.fold_shares(row, len(features))
        return MILOutput(self._fc2(self.norm(class_token)), shares.patches / shares.patches.sum())

    def attention_shares(self, features: Tensor, xy: Tensor) -> AttentionShares:
        """The class token's row of the last layer, part by part, as it is: nothing is normalised or clamped."""
        _, row = self._class_token(features, xy)
        return self.fold_shares(row, len(features))

    @property
    def patch_embedding(self) -> nn.Module:
        """Patches (N, D) -> (N, hidden), each alone."""
        return self._fc1

    @property
    def head(self) -> nn.Linear:
        """Normalised class token (hidden,) -> logits (C,)."""
        return self._fc2

    def _class_token(self, features: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The class token (hidden,) behind the last layer, and its attention row (P,)."""
        tokens = self._encoded(features, xy)
        return self.layer2.first_token(tokens)

    def _encoded(self, features: Tensor, xy: Tensor) -> Tensor:
        """What the last layer is given, (T, hidden): class token, patches, copies."""
        tokens: Tensor = self.layer1(self._sequence(features))  # (T, hidden)
        around = self.pos_layer.on_grid(tokens[1:], xy) if self.grid else self.pos_layer.on_square(tokens[1:])
        return torch.cat([tokens[:1], around])

    def _sequence(self, features: Tensor) -> Tensor:
        """The sequence (T, hidden): class token, patches, copies."""
        patches: Tensor = self._fc1(features)  # (N, hidden)
        return torch.cat([self.cls_token[0], patches, patches[: self.copies(len(features))]])

    def copies(self, patches: int) -> int:
        """How many of the first patches are repeated to fill the square."""
        return 0 if self.grid else (math.isqrt(patches - 1) + 1) ** 2 - patches

    def fold_shares(self, row: Tensor, count: int) -> AttentionShares:
        """Give each key's share (P,) back to what it stands for."""
        copies = self.copies(count)
        padding, class_token, patches, repeated = row.split([len(row) - 1 - count - copies, 1, count, copies])
        folded = torch.cat([patches[:copies] + repeated, patches[copies:]])  # (N,)
        return AttentionShares(folded, class_token[0], padding.sum())


@models.register("transmil", paper="Shao et al., NeurIPS 2021", class_specific_attention=False)
def transmil(
    dim: int,
    classes: int,
    *,
    attention: str = "nystrom",
    position: str = "sequence",
    hidden: int = 512,
    heads: int = 8,
    landmarks: int = 256,
    pinv_iterations: int = 6,
    dropout: float = 0.1,
) -> nn.Module:
    """TransMIL; attention "nystrom" (published; CPU) or "exact" (new training on a GPU), position "sequence" or "grid".

    ``nystrom`` is linear in the number of patches, ``exact`` quadratic in time; on a CPU they cost the same at two
    to three thousand patches. ``landmarks`` and ``pinv_iterations`` mean nothing to ``exact``.
    """
    check_choice("attention", attention, ("nystrom", "exact"))
    check_choice("position", position, ("sequence", "grid"))
    check_counts(hidden=hidden, heads=heads, landmarks=landmarks, pinv_iterations=pinv_iterations)
    check_dropout(dropout)
    if hidden % heads:
        raise ConfigError(f"model option hidden is {hidden}, which {heads} heads cannot share; make it a multiple")
    exact = attention == "exact"

    def layer() -> TokenAttention:
        return TokenAttention(
            hidden, heads, exact=exact, landmarks=landmarks, pinv_iterations=pinv_iterations, dropout=dropout
        )

    return TransMIL(dim, classes, hidden, position == "grid", (layer(), layer()))
