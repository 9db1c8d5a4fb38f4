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
    """Softmax attention (..., Q, K), stored: for few queries only."""
    similarity: Tensor = queries @ keys.mT * queries.shape[-1] ** -0.5
    return similarity.softmax(-1)


def nystrom_attention(
    queries: Tensor, query_landmarks: Tensor, keys: Tensor, values: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Attention of any ``queries`` (1, H, Q, d) to P keys, in O(P · m).

    Returns the attended values (1, H, Q, d) and F1 · pinv(F2) of the first query, (H, m), without gradient.
    """
    key_landmarks = landmark_means(keys, query_landmarks.shape[-2])
    summary = F.scaled_dot_product_attention(query_landmarks, keys, values)  # (1, H, m, d)
    with torch.autocast(queries.device.type, enabled=False):  # the iteration needs full precision
        wide_queries, wide_keys = _full(query_landmarks), _full(key_landmarks)
        inverse = iterated_pinv(attention_weights(wide_queries, wide_keys), iterations)  # (1, H, m, m)
        summary = inverse @ _full(summary)
        with torch.no_grad():
            mixture = attention_weights(_full(queries[..., :1, :]), wide_keys) @ inverse  # (1, H, 1, m)
    attended = F.scaled_dot_product_attention(queries, key_landmarks, summary.to(values.dtype))
    return attended, mixture[0, :, 0]


@torch.no_grad()
def nystrom_row(mixture: Tensor, query_landmarks: Tensor, keys: Tensor) -> Tensor:
    """One query's row of F1 · pinv(F2) · F3, mean over heads, (P,). One head's F3 at a time: m x P numbers.

    ``mixture``: that query's F1 · pinv(F2), (H, m).
    """
    with torch.autocast(keys.device.type, enabled=False):
        heads = zip(mixture, _full(query_landmarks)[0], keys[0], strict=True)
        rows = [mix @ attention_weights(landmarks, _full(head_keys)) for mix, landmarks, head_keys in heads]
        return torch.stack(rows).mean(0)


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
        padded = F.pad(tokens, (0, 0, self.padding(len(tokens)), 0))  # (P, dim)
        queries, keys, values = self._split(self.to_qkv(padded))  # 3 x (1, H, P, d)
        if self.exact:
            attended = F.scaled_dot_product_attention(queries, keys, values)
        else:
            landmarks = landmark_means(queries, self.landmarks)
            attended, _ = nystrom_attention(queries, landmarks, keys, values, self.pinv_iterations)
        mixed = _merge(attended) + self._convolve(_merge(values))  # (P, dim)
        output: Tensor = self.to_out(mixed[-len(tokens) :])
        return output

    def first_token(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token 0 of ``forward``, (dim,), and its attention row (P,), mean over heads, without gradient.

        One query in place of T; landmark queries come from the landmarks' mean tokens, as queries are linear in them.
        """
        zeros = self.padding(len(tokens))
        padded = F.pad(tokens, (0, 0, zeros, 0))  # (P, dim)
        to_queries, to_keys_values = self.to_qkv.weight.tensor_split([padded.shape[1]])
        keys, values = self._split(F.linear(padded, to_keys_values))  # 2 x (1, H, P, d)
        query = self._split(F.linear(tokens[:1], to_queries))[0]  # (1, H, 1, d)
        if self.exact:
            attended = F.scaled_dot_product_attention(query, keys, values)
            with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
                row = attention_weights(_full(query), _full(keys)).mean((0, 1, 2))  # (P,)
        else:
            landmarks = self._split(F.linear(landmark_means(padded, self.landmarks), to_queries))[0]
            attended, mixture = nystrom_attention(query, landmarks, keys, values, self.pinv_iterations)
            row = nystrom_row(mixture, landmarks, keys)
        # Before the first token there are zeros only, so half of the convolution's taps see nothing.
        nearby = values[0, :, zeros : zeros + TAPS // 2 + 1]  # (H, up to 17, d)
        taps = self.res_conv.weight[:, 0, TAPS // 2 :][:, : nearby.shape[1]]  # (H, up to 17, 1)
        mixed = _merge(attended)[0] + (nearby * taps).sum(1).flatten()  # (dim,)
        return self.to_out(mixed), row

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """(T, n · dim) -> n views (1, H, T, d)."""
        head_dim = self.to_qkv.in_features // self.heads
        parts = projected.view(len(projected), -1, self.heads, head_dim)  # (T, n, H, d)
        return parts.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)

    def _convolve(self, values: Tensor) -> Tensor:
        """The value convolution along the tokens: (P, dim) -> (P, dim). A head's channels share its taps.

        Tokens stay rows (channels last), which spares copies and is the faster layout of depthwise kernels.
        """
        taps = self.res_conv.weight.repeat_interleave(values.shape[1] // self.heads, 0)  # (dim, 1, TAPS, 1)
        image = values.T[None, :, :, None]  # (1, dim, P, 1)
        return F.conv2d(image, taps, padding=(TAPS // 2, 0), groups=len(taps))[0, :, :, 0].T


def _merge(heads: Tensor) -> Tensor:
    """(1, H, T, d) -> (T, H · d)."""
    return heads[0].transpose(0, 1).flatten(1)


def _full(x: Tensor) -> Tensor:
    """In full precision, where autocast has made it half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
