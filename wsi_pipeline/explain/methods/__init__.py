"""The explanation methods, one file each: one score per patch, for one class.

A method is built by name, ``explainers.build("contribution")``, and called on one whole bag. It explains the model
unchanged: the forward pass is the model's own, in eval mode, and modes and gradients are restored afterwards. No method
stores a value for each pair of patches. To add a method, add one file here.

"t" in the methods' docstrings is the target: the one number of the model's output that is explained, which depends on
the task; ``explained_model`` defines it.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from ...registry import Registry
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel

explainers: Registry[Explainer] = Registry("explainer", "wsi_pipeline.explain.methods")

ExplainerUnit = Unit | Literal["prediction"]  # prediction: the unit of the task's predictions, see ``unit_for``


class Explainer(Protocol):
    """Interface of every object that a factory of ``explainers`` returns; its attributes are the method's facts."""

    @property
    def unit(self) -> ExplainerUnit:
        """Unit of the scores; "attribution" is the unit of t, up to the method's own scale."""
        ...

    @property
    def signed(self) -> bool:
        """Whether a score below zero is evidence against the class."""
        ...

    @property
    def class_specific(self) -> bool:
        """Whether the scores depend on the requested class, for every model."""
        ...

    def fits(self, explained: ExplainedModel) -> str | None:
        """None if the method can explain the model and its task; else one line: why not, and what it needs."""
        ...

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Explain one bag.

        Parameters
        ----------
        explained : ExplainedModel
            The model and its task, on the device of ``features``.
        features : Tensor, (N, D)
            In the model's precision.
        xy : Tensor, (N, 2)
            Positions of the patches in units of the patch stride.
        target : int
            Index of the class.

        Returns
        -------
        Attribution
            Scores (N,) and the residual; for a complete method they add up to t.

        Raises
        ------
        ConfigError
            Where the method does not fit the model.
        """
        ...


def unit_for(explainer: Explainer, explained: ExplainedModel) -> Unit:
    """Unit of the method's scores for the model's task."""
    return explained.prediction_unit if explainer.unit == "prediction" else explainer.unit
