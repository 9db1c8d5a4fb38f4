"""A model as the explanations see it: what it predicts, and the one number that a method explains.

=============== ======== =====================================================================================
task            link     target t(x) of class c with logits y
=============== ======== =====================================================================================
classification  softmax  y_c less the mean of the other classes' logits; of two classes the log odds of c
multilabel      sigmoid  y_c, the label's own log odds: another label that is present is no evidence against it
regression      value    y, the predicted value in standard deviations of the training labels
survival        risk     y, the log hazard of Cox's model, up to a constant that all slides share
=============== ======== =====================================================================================

t is affine in the logits. A logit of a softmax is arbitrary up to a constant that all classes share, so there the
contrast is explained; the logits of the other links mean something on their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..aggregate.checkpoint import ModelCard, Task
from ..predict.ensembles import load_members
from ..types import Float32, Unit
from .frozen import frozen
from .logit_contrast import contrast

Link = Literal["softmax", "sigmoid", "value", "risk"]
LINKS: Mapping[Task, Link] = {
    "classification": "softmax",
    "multilabel": "sigmoid",
    "regression": "value",
    "survival": "risk",
}


@dataclass(frozen=True)
class Target:
    """The number t that is explained, as a linear function of the logits."""

    index: int  # of the class
    link: Link = "softmax"

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits, or evidence per class, (..., C) -> (...)."""
        return contrast(logits, self.index) if self.link == "softmax" else logits[..., self.index]


@dataclass(frozen=True, eq=False)
class ExplainedModel:
    """A slide model with its task.

    Parameters
    ----------
    module : takes features (N, D) and positions (N, 2) in units of the patch stride, gives ``MILOutput``
    task : decides the link, and so what is explained
    classes : names of the logits, in order; of regression and survival one name
    scale : of regression, mean and standard deviation of the training labels
    """

    module: nn.Module
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def link(self) -> Link:
        """What turns the logits into what is predicted."""
        return LINKS[self.task]

    @property
    def has_probabilities(self) -> bool:
        """Whether the task predicts probabilities."""
        return self.link in ("softmax", "sigmoid")

    @property
    def prediction_unit(self) -> Unit:
        """Unit of ``predictions``: "probability", the label's own "value", or "risk"."""
        if self.link == "value":
            return "value"
        return "risk" if self.link == "risk" else "probability"

    def target(self, index: int) -> Target:
        """What is explained of class ``index``."""
        return Target(index, self.link)

    def predictions(self, logits: Tensor) -> Tensor:
        """What the model predicts, (..., C), from logits (..., C): probabilities, values in the label's unit, risks."""
        if self.link == "softmax":
            return logits.softmax(-1)
        if self.link == "sigmoid":
            return logits.sigmoid()
        return self.scale[0] + self.scale[1] * logits if self.link == "value" else logits

    def logits(self, features: Tensor, xy: Tensor) -> Tensor:
        """Logits (C,) of a bag (N, D) at ``xy`` (N, 2), in eval mode, without gradient."""
        with frozen(self.module), torch.no_grad():
            found: Tensor = self.module(features, xy).logits
        return found


@dataclass(frozen=True, eq=False)
class Attribution:
    """Per-patch scores plus the part assigned to inputs other than patches."""

    scores: Tensor  # (N,) in the model's precision
    residual: Mapping[str, float] = field(default_factory=dict)  # e.g. "class token", "padding", "bias" -> its part

    def numpy(self) -> Float32:
        """The scores (N,) as float32."""
        scores: Float32 = self.scores.detach().float().cpu().numpy()
        return scores


def explained_model(module: nn.Module, card: ModelCard) -> ExplainedModel:
    """``module`` with what its card says of the task."""
    return ExplainedModel(module, card.task, card.classes, card.scale)


def load_explained(folders: Sequence[Path], device: str) -> list[ExplainedModel]:
    """The members of an ensemble on ``device``, in the order of ``folders``."""
    return [explained_model(module, card) for module, card in load_members(folders, device)]
