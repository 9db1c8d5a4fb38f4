"""The methods, one file each: one score per patch, for one class.

A method is built by name, ``explainers.build("contribution")``, and called on one whole bag. It explains the model as
it is: the forward pass is the model's own, in eval mode, and the model is left as it was found. None stores a number
for each pair of patches. A new method is one new file here.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from ...registry import Registry
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel

explainers: Registry[Explainer] = Registry("explainer", "wsi_pipeline.explain.methods")

ExplainerUnit = Unit | Literal["prediction"]  # prediction: whatever the task predicts, see ``unit_for``


class Explainer(Protocol):
    """What every factory of ``explainers`` returns."""

    @property
    def unit(self) -> ExplainerUnit:
        """What one score is."""
        ...

    @property
    def signed(self) -> bool:
        """Whether a score below zero is evidence against the class."""
        ...

    @property
    def class_specific(self) -> bool:
        """Whether the scores depend on the class that is asked for, whatever the model."""
        ...

    def fits(self, explained: ExplainedModel) -> str | None:
        """None where the method can explain the model and its task; else one line: why not, and what it needs."""
        ...

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Scores (N,) of class ``target`` for ``features`` (N, D) at ``xy`` (N, 2), units of the stride.

        Where the method is complete, scores and residual add up to its whole.
        """
        ...


def unit_for(explainer: Explainer, explained: ExplainedModel) -> Unit:
    """The unit of the method's scores for this model's task."""
    return explained.prediction_unit if explainer.unit == "prediction" else explainer.unit
