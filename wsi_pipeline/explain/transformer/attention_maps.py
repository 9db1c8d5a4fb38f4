"""Attention maps a tile at a time: the T x P numbers of a head are never all there.

A map is (H, T, P): T tokens look at P keys. Exact attention gives a tile from queries, keys and each row's normaliser;
Nystrom's map is F1 · (pinv(F2) · F3), of rank m, so a product with the whole map costs O(T m).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...aggregate.nystrom import attention_weights, iterated_pinv
from .trace import Layer

ROWS, COLUMNS = 256, 2048  # of a map, held at once


def spans(length: int, step: int) -> Iterator[slice]:
    """Slices of at most ``step`` that cover ``length``."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


class AttentionMap(Protocol):
    """One layer's attention map A (H, T, P)."""

    def tile(self, head: int, rows: slice, columns: slice) -> Tensor:
        """A part of one head's map."""
        ...

    def pull(self, x: Tensor) -> Tensor:
        """Aᵀ x of each head: (H, T, k) -> (H, P, k)."""
        ...


@dataclass(frozen=True, eq=False)
class ExactMap:
    """softmax(q kᵀ)."""

    queries: Tensor  # (H, T, d) scaled
    keys: Tensor  # (H, P, d)

    @cached_property
    def log_sums(self) -> Tensor:
        """Each row's logarithm of the sum of exponentials, (H, T)."""
        heads, tokens, _ = self.queries.shape
        total = self.queries.new_full((heads, tokens), -torch.inf)
        for rows in spans(tokens, ROWS):
            for columns in spans(self.keys.shape[1], COLUMNS):
                for head in range(heads):
                    part = self._similarity(head, rows, columns).logsumexp(1)
                    total[head, rows] = torch.logaddexp(total[head, rows], part)
        return total

    def tile(self, head: int, rows: slice, columns: slice) -> Tensor:
        return (self._similarity(head, rows, columns) - self.log_sums[head, rows, None]).exp_()

    def pull(self, x: Tensor) -> Tensor:
        pulled = x.new_zeros(len(x), self.keys.shape[1], x.shape[2])
        for head in range(len(x)):
            for rows in spans(x.shape[1], ROWS):
                for columns in spans(self.keys.shape[1], COLUMNS):
                    pulled[head, columns] += self.tile(head, rows, columns).mT @ x[head, rows]
        return pulled

    def _similarity(self, head: int, rows: slice, columns: slice) -> Tensor:
        return self.queries[head, rows] @ self.keys[head, columns].mT


@dataclass(frozen=True, eq=False)
class NystromMap:
    """F1 · pinv(F2) · F3, the pseudo-inverse as the model iterates it."""

    queries: Tensor  # (H, T, d)
    query_landmarks: Tensor  # (H, m, d)
    key_landmarks: Tensor  # (H, m, d)
    keys: Tensor  # (H, P, d)
    inverse: Tensor  # (H, m, m)

    @cached_property
    def right(self) -> Tensor:
        """pinv(F2) · F3, (H, m, P)."""
        return torch.stack([self.inverse[head] @ self._found(head) for head in range(len(self.keys))])

    def tile(self, head: int, rows: slice, columns: slice) -> Tensor:
        return self._looked(head, rows) @ self.right[head, :, columns]

    def pull(self, x: Tensor) -> Tensor:
        pulled = []
        for head in range(len(x)):
            blocks = (self._looked(head, rows).mT @ x[head, rows] for rows in spans(x.shape[1], ROWS))
            gathered = torch.stack(list(blocks)).sum(0)  # F1ᵀ x (m, k)
            pulled.append(self._found(head).mT @ (self.inverse[head].mT @ gathered))
        return torch.stack(pulled)

    def _looked(self, head: int, rows: slice) -> Tensor:
        """A part of F1, (B, m)."""
        return attention_weights(self.queries[head, rows], self.key_landmarks[head])

    def _found(self, head: int) -> Tensor:
        """F3, (m, P)."""
        return attention_weights(self.query_landmarks[head], self.keys[head])


def attention_map(layer: Layer) -> AttentionMap:
    """The map of a layer all of whose tokens were computed."""
    attention, padded = layer.attention, layer.padded()
    to_queries, to_keys, _ = attention.to_qkv.weight.chunk(3)
    queries = attention.split_heads(F.linear(layer.normed, to_queries))[0]  # (H, T, d)
    keys = attention.split_heads(F.linear(padded, to_keys))[0]  # (H, P, d)
    if attention.exact:
        return ExactMap(queries * queries.shape[2] ** -0.5, keys)
    query_landmarks, key_landmarks = attention.landmark_projections(padded)
    inverse = iterated_pinv(attention_weights(query_landmarks, key_landmarks), attention.pinv_iterations)
    return NystromMap(queries, query_landmarks[0], key_landmarks[0], keys, inverse[0])


def mean_pull(layer: Layer, row: Tensor) -> Tensor:
    """row · A of a row (P,), A the mean over heads; padding looks at itself: (P,)."""
    arriving = row[layer.padding :, None].expand(layer.attention.heads, -1, -1)  # (H, T, 1)
    pulled = attention_map(layer).pull(arriving).mean(0)[:, 0]
    pulled[: layer.padding] += row[: layer.padding]
    return pulled


def weighted_rows(layer: Layer, factors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Rows of M = mean over heads of relu(A ⊙ (f Vᵀ) ⊙ …), each factor f (H, T, d): (rows, (B, P)), block by block."""
    attended, values = attention_map(layer), layer.values()
    heads, keys, _ = values.shape
    for rows in spans(len(layer.tokens), ROWS):
        block = values.new_zeros(rows.stop - rows.start, keys)
        for columns in spans(keys, COLUMNS):
            for head in range(heads):
                tile = attended.tile(head, rows, columns)
                for factor in factors:
                    tile *= factor[head, rows] @ values[head, columns].mT
                block[:, columns] += tile.relu_()
        yield rows, block.div_(heads)


def magnitude(left: Tensor, right: Tensor) -> Tensor:
    """Sum over all pairs of |left · right| of each head, (H, T, d) each: (H,). Their number cancels in a share."""
    total = left.new_zeros(len(left))
    for head in range(len(left)):
        for rows in spans(left.shape[1], ROWS):
            for columns in spans(right.shape[1], COLUMNS):
                total[head] += (left[head, rows] @ right[head, columns].mT).abs_().sum()
    return total
