"""The embedded patches h inside a model's own forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from ..aggregate import EmbedsPatches


def embedding(model: nn.Module) -> nn.Module | None:
    """The module whose output is h (N, hidden), a row for each patch, of that patch alone; None: there is none."""
    return model.patch_embedding if isinstance(model, EmbedsPatches) else None


@contextlib.contextmanager
def embedded_leaf(module: nn.Module) -> Iterator[list[Tensor]]:
    """In a forward pass inside, the output of ``module`` is a leaf of the graph, with a gradient, and in the list."""
    seen: list[Tensor] = []

    def leaf(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = module.register_forward_hook(leaf)
    try:
        yield seen
    finally:
        handle.remove()
