"""The optimisers of the recipes, by name, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .. import torchvision_guard  # noqa: F401
from ..config import TrainConfig

LOOKAHEAD = {"alpha": 0.5, "k": 6}  # Zhang et al., NeurIPS 2019, as TransMIL uses it


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of ``config`` (``optimizer``, ``lr``, ``weight_decay``, ``betas``) for ``parameters``.

    Adam and RAdam add the weight decay to the gradient, as the papers' code does; AdamW decouples it.
    """
    parameters = list(parameters)
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.betas[0], **common)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, betas=config.betas, **common)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, betas=config.betas, **common)
    radam = torch.optim.RAdam(parameters, betas=config.betas, **common)
    if config.optimizer == "radam":
        return radam
    from timm.optim.lookahead import Lookahead

    lookahead: torch.optim.Optimizer = Lookahead(radam, **LOOKAHEAD)  # type: ignore[no-untyped-call]
    return lookahead


def lr_factor(epoch: int, warmup: int, epochs: int, schedule: str = "cosine") -> float:
    """Factor on the learning rate in ``epoch`` (from 0): linear warm-up, then constant or a half cosine ending above 0.

    >>> [round(lr_factor(epoch, 1, 4), 3) for epoch in range(4)]
    [0.5, 1.0, 0.75, 0.25]
    """
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup))) / 2
