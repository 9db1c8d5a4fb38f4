"""The model's logits for each patch as a bag of its own: ``model(features[k:k+1], xy[k:k+1])`` for every k, faster.

Always the same function as that loop, to rounding. ``torch.vmap`` runs the model's own forward pass on many bags of
one at a time; TransMIL, whose cost for one patch is that of its zero padding, has a closed form; a model that neither
takes (its shapes depend on the data) is called patch by patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..aggregate.nystrom import TAPS, TokenAttention
from ..aggregate.ppeg import RADIUS
from ..aggregate.transmil import TransMIL

VMAP_BAGS = 64  # bags of one in a call: a model may need some ten megabytes for each
CLOSED_FORM_BAGS = 1024
_TOLERANCE = 1e-4


def logits_alone(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor:
    """(N, C) logits of each patch alone, for a model in eval mode."""
    if type(model) is TransMIL and has_closed_form(model):
        return torch.cat([transmil_alone(model, part) for part in features.split(CLOSED_FORM_BAGS)])
    if batches(model, features[:2], xy[:2]):
        parts = zip(features.split(VMAP_BAGS), xy.split(VMAP_BAGS), strict=True)
        return torch.cat([vmapped(model, *part) for part in parts])
    return one_by_one(model, features, xy)


def one_by_one(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor:
    """The definition, (N, C)."""
    return torch.stack([model(features[k : k + 1], xy[k : k + 1]).logits for k in range(len(features))])


def vmapped(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor:
    """The same in one batched call, (N, C)."""

    def logits(features: Tensor, xy: Tensor) -> Tensor:
        answer: Tensor = model(features, xy).logits
        return answer

    # The fused attention kernels have no batched form on a CPU; the plain one is written in operators that have.
    with sdpa_kernel(SDPBackend.MATH):
        return torch.vmap(logits)(features[:, None], xy[:, None])


def batches(model: nn.Module, features: Tensor, xy: Tensor) -> bool:
    """Whether the model can be batched and then says of these few patches what it says of each."""
    try:
        together = vmapped(model, features, xy)
    except RuntimeError:  # how torch says that an operator's shape depends on the data
        return False
    return torch.allclose(together, one_by_one(model, features, xy), rtol=_TOLERANCE, atol=_TOLERANCE)


def has_closed_form(model: TransMIL) -> bool:
    """Whether each token is a landmark of its own when there are two tokens."""
    attention = model.layer1.attn
    return attention.exact or attention.landmarks >= 2


def transmil_alone(model: TransMIL, features: Tensor) -> Tensor:
    """TransMIL's logits (B, C) for B bags of one patch; a patch alone has no position."""
    patches: Tensor = model.patch_embedding(features)  # (B, hidden)
    tokens = torch.stack([model.cls_token[0].expand_as(patches), patches], dim=1)  # (B, 2, hidden)
    tokens = tokens + pair_attention(model.layer1.attn, model.layer1.norm(tokens))
    kernel, bias = model.pos_layer.summed_kernel()
    around = tokens[:, 1] * kernel[:, 0, RADIUS, RADIUS] + bias  # (B, hidden) a kernel sees the patch itself only
    tokens = torch.stack([tokens[:, 0], tokens[:, 1] + around], dim=1)
    tokens = tokens + pair_attention(model.layer2.attn, model.layer2.norm(tokens))
    logits: Tensor = model.head(model.norm(tokens[:, 0]))
    return logits


def pair_attention(attention: TokenAttention, tokens: Tensor) -> Tensor:
    """``TokenAttention.forward`` for B sequences of two tokens, (B, 2, hidden) -> (B, 2, hidden)."""
    projected = attention.to_qkv(tokens).unflatten(2, (3, attention.heads, -1))  # (B, 2, 3, H, d)
    queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # 3 x (B, H, 2, d)
    if attention.exact:
        attended = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1) @ values
    else:
        attended = _padded_pair(queries, keys, values, attention.landmarks - 2, attention.pinv_iterations)
    middle = attention.res_conv.weight[:, 0, TAPS // 2 - 1 : TAPS // 2 + 2, 0]  # (H, 3) the taps that two tokens meet
    before, own, after = middle.T[:, :, None, None]  # 3 x (H, 1, 1)
    first, second = values[:, :, :1], values[:, :, 1:]
    nearby = torch.cat([own * first + after * second, before * first + own * second], dim=2)  # (B, H, 2, d)
    output: Tensor = attention.to_out((attended + nearby).transpose(1, 2).flatten(2))
    return output


def _padded_pair(queries: Tensor, keys: Tensor, values: Tensor, zeros: int, iterations: int) -> Tensor:
    """Nystrom attention (B, H, 2, d) of two tokens behind ``zeros`` zero tokens, each token its own landmark.

    All zero tokens are alike, so every matrix over the tokens is constant on the blocks (zero, first, second), and
    so are products and transposes of such matrices. A matrix of blocks a_ts stands here as a_ts n_s, n the blocks'
    sizes: then the product of the small matrices stands for the product of the large ones, identity included.
    """
    queries, keys, values = (torch.nn.functional.pad(x, (0, 0, 1, 0)) for x in (queries, keys, values))  # (B, H, 3, d)
    sizes = queries.new_tensor([zeros, 1, 1])
    similarity = queries @ keys.mT * queries.shape[-1] ** -0.5  # (B, H, 3, 3)
    weighted = similarity + sizes.log()
    blocks = (similarity - weighted.logsumexp(-1, keepdim=True)).exp()  # a_ts
    attention = weighted.softmax(-1)  # a_ts n_s
    there = sizes > 0
    rows = attention.sum(-1)[..., there].amax((1, 2))  # (B,) the largest over heads and tokens, bag by bag
    columns = (blocks * sizes[:, None]).sum(-2)[..., there].amax((1, 2))
    inverse = blocks.mT * sizes / (rows * columns)[:, None, None, None]
    identity = torch.eye(3, dtype=queries.dtype, device=queries.device)
    for _ in range(iterations):
        product = attention @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    attended: Tensor = attention @ (inverse @ (attention @ values))
    return attended[:, :, 1:]
