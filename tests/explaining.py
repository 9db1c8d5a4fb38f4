"""Shared by the tests of explanations: call a method on a bare module, and find the largest tensor of a call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.aggregate.checkpoint import Task
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.methods import Explainer
from wsi_pipeline.types import Float32


def scores_of(
    explainer: Explainer, model: nn.Module, features: Tensor, xy: Tensor, target: int, task: Task = "classification"
) -> Float32:
    """The method's scores (N,) of class ``target``."""
    return explainer(ExplainedModel(model, task), features, xy, target).numpy()


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that an operator inside the context returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.values = max(self.values, value.numel())
        return result
