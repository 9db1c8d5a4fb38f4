"""What a trained model predicts for one bag. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from ..errors import ConfigError
from ..types import Float64


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model predicts for one bag.

    Attributes
    ----------
    slide_id, model, task : str
        What was predicted, and by which model.
    outcome : mapping of str to float
        Class -> probability; for a regression ``value``, in the label's unit; for survival ``risk``, the log hazard.
        Mean over the members.
    predicted : str
        The class, or ``abstain`` if that was asked for and the prediction set does not contain exactly one; of several
        labels those from 0.5 on, joined by ``;``, ``-`` for none; empty for a regression and survival.
    threshold : float, optional
        On the probability of the positive class of two, from the validation patients.
    calibrated : mapping of str to float
        Like ``outcome``, after temperature scaling of each member that has a temperature.
    prediction_set : tuple of str, optional
        Classification: the classes that split conformal prediction does not exclude.
    entropy, aleatoric, epistemic : float
        Total uncertainty and its two parts, in nats; NaN without probabilities, except ``epistemic``: there it is the
        variance over the members.
    logits : ndarray of float64, (M, C)
        Of each member.
    """

    slide_id: str
    model: str
    task: str
    outcome: Mapping[str, float]
    predicted: str
    threshold: float | None
    calibrated: Mapping[str, float]
    prediction_set: tuple[str, ...] | None
    entropy: float
    aleatoric: float
    epistemic: float
    logits: Float64

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the logits."""
        return tuple(self.outcome)

    @property
    def probabilities(self) -> Mapping[str, float]:
        """``outcome``, where it holds probabilities. Raises ``ConfigError`` for a regression and survival."""
        if self.task not in ("classification", "multilabel"):
            raise ConfigError(f"{self.model} predicts no probabilities ({self.task}); use prediction.outcome")
        return self.outcome

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in self.outcome.items())
        return f"<{self.slide_id}, {self.model}: {numbers}{' -> ' + self.predicted if self.predicted else ''}>"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{escape(name)}</td><td>{value:.3f}</td><td>{self.calibrated[name]:.3f}</td></tr>"
            for name, value in self.outcome.items()
        )
        what = "probability" if self.task in ("classification", "multilabel") else self.task
        return (
            f"<table><caption>{escape(self.slide_id)}, {escape(self.model)}: {escape(self.predicted) or what}</caption>"
            f"<tr><th></th><th>{what}</th><th>calibrated</th></tr>{cells}</table>"
        )
