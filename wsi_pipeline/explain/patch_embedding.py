"""The embedded patches h within a model's own forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from ..aggregate import EmbedsPatches


def embedding(model: nn.Module) -> nn.Module | None:
    """The module whose output is h (N, hidden), each row from its own patch only; None if the model has none."""
    return model.patch_embedding if isinstance(model, EmbedsPatches) else None


@contextlib.contextmanager
def embedded_leaf(module: nn.Module) -> Iterator[list[Tensor]]:
    """Make the output of ``module`` a leaf that requires a gradient, and collect it in the yielded list."""
    outputs: list[Tensor] = []

    def leaf(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = module.register_forward_hook(leaf)
    try:
        yield outputs
    finally:
        handle.remove()
