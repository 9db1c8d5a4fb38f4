"""Pooling of a vision transformer's tokens to one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError

POOLS = ("model", "cls", "mean", "cls+mean")


class TokenPool(nn.Module):
    """A timm network whose tokens (B, T, C) are pooled: ``cls`` (B, C), ``mean`` (B, C) or ``cls+mean`` (B, 2C).

    ``mean`` is over the patch tokens, without the class token and the register tokens, which come first.
    """

    def __init__(self, network: nn.Module, pool: str) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self._prefix = int(cast(int, network.num_prefix_tokens))  # class and register tokens

    def forward(self, patches: Tensor) -> Tensor:
        tokens = cast(Callable[[Tensor], Tensor], self.network.forward_features)(patches)  # (B, T, C)
        parts = []
        if "cls" in self.pool:
            parts.append(tokens[:, 0])
        if "mean" in self.pool:
            parts.append(tokens[:, self._prefix :].mean(dim=1))
        return torch.cat(parts, dim=1)


def pooled(network: nn.Module, pool: str, name: str) -> nn.Module:
    """Pool the tokens of a network.

    Parameters
    ----------
    network : torch.nn.Module
        A network of timm.
    pool : {"model", "cls", "mean", "cls+mean"}
        ``model``: the network's own pooling.
    name : str
        The encoder, for the error message.

    Returns
    -------
    torch.nn.Module
        (B, 3, s, s) -> (B, C), or (B, 2C) for ``cls+mean``.

    Raises
    ------
    ConfigError
        The network has no tokens to pool in this way.
    """
    if pool not in POOLS:
        raise ConfigError(f"encoder {name!r}: pool {pool!r} is unknown; use one of {', '.join(POOLS)}")
    if pool == "model":
        return network
    if not hasattr(network, "num_prefix_tokens"):
        raise ConfigError(f"encoder {name!r} has no tokens to pool; leave encoder_options.pool out")
    if not isinstance(getattr(network, "fc_norm", nn.Identity()), nn.Identity):
        raise ConfigError(f"encoder {name!r} normalises after its own pooling; leave encoder_options.pool out")
    if "cls" in pool and getattr(network, "cls_token", None) is None:
        raise ConfigError(f"encoder {name!r} has no class token; use pool: mean, or leave it out")
    return TokenPool(network, pool)
