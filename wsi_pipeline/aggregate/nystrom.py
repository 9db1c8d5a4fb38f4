"""Multi-head attention over one long sequence whose first token is read: Nystrom or exact, never T x T in memory.

Xiong et al., "Nystromformer: A Nystrom-based Algorithm for Approximating Self-Attention", AAAI 2021. With m landmark
queries and keys, each the mean of a run of tokens, attention is F1 · pinv(F2) · F3: F1 = softmax(q k~ᵀ) (T, m),
F2 = softmax(q~ k~ᵀ) (m, m), F3 = softmax(q~ kᵀ) (m, T), pinv by iteration. As F1 and F3 are themselves softmax
attentions, the product with the values is two fused calls, SDPA(q, k~, pinv(F2) · SDPA(q~, k, v)), and neither F1
nor F3 is stored.

Frame of a row: P = padding + T keys. The zero padding stands in front, up to a multiple of m, and takes part in the
softmax, as in the implementation that TransMIL's weights were trained with; then come the T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TAPS = 33  # of the depthwise convolution of the values


def landmark_means(x: Tensor, landmarks: int) -> Tensor:
    """Mean of each of ``landmarks`` equal runs: (..., P, d) -> (..., landmarks, d)."""
    runs: Tensor = x.unflatten(-2, (landmarks, -1))  # (..., landmarks, P / landmarks, d)
    return runs.mean(-2)


def iterated_pinv(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate Moore-Penrose inverse of (..., m, m) by Razavi's iteration, as in the paper.

    Its start is scaled by maxima over all heads, so bags that shared a call would influence each other.
    """
    magnitude = matrix.abs()
    inverse = matrix.mT / (magnitude.sum(-1).max() * magnitude.sum(-2).max())
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse


def attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Softmax attention (..., Q, K) in full precision, stored: for few queries only."""
    with torch.autocast(keys.device.type, enabled=False):
        similarity: Tensor = _full(queries) * queries.shape[-1] ** -0.5 @ _full(keys).mT
        return similarity.softmax(-1)


def landmark_summary(
    query_landmarks: Tensor, key_landmarks: Tensor, keys: Tensor, values: Tensor, iterations: int
) -> Tensor:
    """pinv(F2) · F3 · values, (1, H, m, d): what queries that attend to the key landmarks find there."""
    summary = F.scaled_dot_product_attention(query_landmarks, keys, values)  # (1, H, m, d)
    kernel = attention_weights(query_landmarks, key_landmarks)  # F2 (1, H, m, m)
    with torch.autocast(keys.device.type, enabled=False):  # the iteration needs full precision
        return (iterated_pinv(kernel, iterations) @ _full(summary)).to(values.dtype)


def nystrom_row(query: Tensor, query_landmarks: Tensor, key_landmarks: Tensor, keys: Tensor, iterations: int) -> Tensor:
    """F1 · pinv(F2) · F3 of one query (1, H, 1, d), stored: (H, P) in full precision.

    One head's F3 at a time, m x P numbers, made again for the gradient.
    """
    kernel = attention_weights(query_landmarks, key_landmarks)  # F2 (1, H, m, m)
    with torch.autocast(keys.device.type, enabled=False):
        mixture = attention_weights(query, key_landmarks) @ iterated_pinv(kernel, iterations)  # (1, H, 1, m)
    heads = zip(mixture[0, :, 0], query_landmarks[0], keys[0], strict=True)
    rows = [checkpoint(_mixed_weights, *head, use_reentrant=False, preserve_rng_state=False) for head in heads]
    return torch.stack(rows)


def _mixed_weights(mixture: Tensor, query_landmarks: Tensor, keys: Tensor) -> Tensor:
    """mixture · F3 of one head: (m,), (m, d), (P, d) -> (P,)."""
    weights = attention_weights(query_landmarks, keys)
    with torch.autocast(keys.device.type, enabled=False):
        return mixture @ weights


class TokenAttention(nn.Module):
    """Multi-head self-attention with a depthwise convolution of the values added to its output.

    ``exact``: softmax attention (fused, O(T) memory) in place of Nystrom, with the same parameters and the same value
    convolution. The two are different functions: weights trained with one do not serve the other.
    Parameter names are those of the published implementation.
    """

    def __init__(
        self, dim: int, heads: int, *, exact: bool, landmarks: int, pinv_iterations: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.exact = exact
        self.landmarks = landmarks
        self.pinv_iterations = pinv_iterations
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.res_conv = nn.Conv2d(heads, heads, (TAPS, 1), padding=(TAPS // 2, 0), groups=heads, bias=False)

    def padding(self, tokens: int) -> int:
        """How many zero keys stand in front of ``tokens`` tokens."""
        return 0 if self.exact else -tokens % self.landmarks

    def forward(self, tokens: Tensor) -> Tensor:
        """All tokens attend to all: (T, dim) -> (T, dim)."""
        padded = self.padded(tokens)  # (P, dim)
        values = F.linear(padded, self.to_qkv.weight.chunk(3)[2])  # (P, dim)
        mixed = _merge(self._attended(padded, values)) + self.convolve_values(values)
        output: Tensor = self.to_out(mixed[-len(tokens) :])
        return output

    def _attended(self, padded: Tensor, values: Tensor) -> Tensor:
        """What each token attends to, (1, H, P, d). Keys are dropped before there are queries."""
        to_queries, to_keys, _ = self.to_qkv.weight.chunk(3)
        if self.exact:
            keys, found = self.split_heads(F.linear(padded, to_keys)), self.split_heads(values)
        else:
            landmarks, keys = self.landmark_projections(padded)
            found = landmark_summary(
                landmarks,
                keys,
                self.split_heads(F.linear(padded, to_keys)),
                self.split_heads(values),
                self.pinv_iterations,
            )
        return F.scaled_dot_product_attention(self.split_heads(F.linear(padded, to_queries)), keys, found)

    def first_token(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token 0 of ``forward``, (dim,), and its attention row (P,), mean over heads, without gradient.

        One query in place of T, and its row times the tokens: values are linear in them, so none is computed but those
        that the convolution sees.
        """
        padded = self.padded(tokens)  # (P, dim)
        to_values = self.to_qkv.weight.chunk(3)[2]
        rows = self.first_row(tokens[:1], padded)  # (H, P)
        with torch.autocast(rows.device.type, enabled=False):
            seen = rows @ padded.to(rows.dtype)  # (H, dim)
        attended = (seen[:, None] * to_values.unflatten(0, (self.heads, -1))).sum(-1)  # (H, d)
        # Before the first token there are zeros only, so half of the convolution's taps see nothing.
        nearby = self.split_heads(F.linear(tokens[: TAPS // 2 + 1], to_values))[0]  # (H, up to 17, d)
        taps = self.res_conv.weight[:, 0, TAPS // 2 :][:, : nearby.shape[1]]  # (H, up to 17, 1)
        mixed = (attended + (nearby * taps).sum(1)).flatten()  # (dim,)
        return self.to_out(mixed.to(tokens.dtype)), rows.detach().mean(0)

    def first_row(self, first: Tensor, padded: Tensor) -> Tensor:
        """The attention of the first token (1, dim) to all keys, (H, P)."""
        to_queries, to_keys, _ = self.to_qkv.weight.chunk(3)
        query, keys = self.split_heads(F.linear(first, to_queries)), self.split_heads(F.linear(padded, to_keys))
        if self.exact:
            return attention_weights(query, keys)[0, :, 0]
        return nystrom_row(query, *self.landmark_projections(padded), keys, self.pinv_iterations)

    def padded(self, tokens: Tensor) -> Tensor:
        """(T, dim) -> (P, dim)."""
        zeros = self.padding(len(tokens))
        return torch.cat([tokens.new_zeros(zeros, tokens.shape[1]), tokens]) if zeros else tokens

    def landmark_projections(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Landmark queries and keys, 2 x (1, H, m, d), of the landmarks' mean tokens, in which they are linear."""
        means = landmark_means(padded, self.landmarks)  # (m, dim)
        to_queries, to_keys, _ = self.to_qkv.weight.chunk(3)
        return self.split_heads(F.linear(means, to_queries)), self.split_heads(F.linear(means, to_keys))

    def split_heads(self, projected: Tensor) -> Tensor:
        """(T, dim) -> a view (1, H, T, d)."""
        heads: Tensor = projected.unflatten(1, (self.heads, -1))  # (T, H, d)
        return heads.transpose(0, 1)[None]

    def convolve_values(self, values: Tensor) -> Tensor:
        """The value convolution along the tokens: (P, dim) -> (P, dim). A head's channels share its taps.

        Tokens stay rows: as a picture one token wide, its channels last in every stride, no copy is made and the fast
        depthwise kernels apply, which a mere transpose misses (seven times slower, measured on a CPU).
        """
        taps = self.res_conv.weight.repeat_interleave(values.shape[1] // self.heads, 0)  # (dim, 1, TAPS, 1)
        image = values.view(1, len(values), 1, -1).permute(0, 3, 1, 2)  # (1, dim, P, 1)
        convolved: Tensor = F.conv2d(image, taps, padding=(TAPS // 2, 0), groups=len(taps))
        return convolved.permute(0, 2, 3, 1).reshape(values.shape)


def _merge(heads: Tensor) -> Tensor:
    """(1, H, T, d) -> (T, H · d)."""
    return heads[0].transpose(0, 1).flatten(1)


def _full(x: Tensor) -> Tensor:
    """In full precision, where autocast has made it half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
