"""Calling a method on a bare module, as most tests do."""

from __future__ import annotations

from torch import Tensor, nn

from wsi_pipeline.aggregate.checkpoint import Task
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.methods import Explainer
from wsi_pipeline.types import Float32


def scores_of(
    explainer: Explainer, model: nn.Module, features: Tensor, xy: Tensor, target: int, task: Task = "classification"
) -> Float32:
    """The method's scores (N,) of class ``target``."""
    return explainer(ExplainedModel(model, task), features, xy, target).numpy()
