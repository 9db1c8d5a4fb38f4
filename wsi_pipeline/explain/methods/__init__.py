"""Why the slide model says what it says: one score per patch, for one class.

An explainer is built by name, ``explainers.build("contribution")``, and called on one whole bag. It explains the
model as it is: the forward pass is the model's own, in eval mode, and the model is left as it was found. None stores
a number for each pair of patches. A new method is one new file here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ...registry import Registry
from ...types import Float32, Unit

explainers: Registry[Explainer] = Registry("explainer", "wsi_pipeline.explain.methods")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Where a method puts the whole: on the patches, and on what is no patch."""

    scores: Tensor  # (N,) in the model's precision
    residual: Mapping[str, float] = field(default_factory=dict)  # e.g. "class token", "padding", "bias" -> share


class Explainer(Protocol):
    """What every factory of ``explainers`` returns. The three facts stand in the registry's ``info``, too."""

    @property
    def unit(self) -> Unit:
        """What one score is."""
        ...

    @property
    def signed(self) -> bool:
        """Whether a score below zero speaks against the class."""
        ...

    @property
    def class_specific(self) -> bool:
        """Whether the scores depend on the class that is asked for, whatever the model."""
        ...

    def fits(self, model: nn.Module) -> str | None:
        """None where the method can explain ``model``; else one line: why not, and what the method needs."""
        ...

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        """Scores (N,) of class ``target`` for ``features`` (N, D) at ``xy`` (N, 2), units of the stride."""
        ...


@runtime_checkable
class ReportsResidual(Protocol):
    """An explainer that also says what falls on no patch. Its call gives the scores of its account."""

    def attribute(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Attribution:
        """Like a call, with the rest beside the scores: together they are the method's whole."""
        ...
