"""Freeze a model for the time of an explanation, and restore it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in eval mode, parameters without gradient; restore both at the end, module by module."""
    modes = {module: module.training for module in model.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        model.requires_grad_(False)
        yield model
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)
