"""Borrow a model for an explanation and give it back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, its parameters without gradient; both as before at the end, module by module."""
    training = {module: module.training for module in model.modules()}
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        model.requires_grad_(False)
        yield model
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, needed in learning.items():
            parameter.requires_grad_(needed)
