"""Random scores: the baseline of every measure, which a method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from ...rng import generator_for
from ...types import Float64, Unit
from ..explained_model import Attribution, ExplainedModel

RANDOM = "random"  # their name among the methods


def random_scores(patches: int, *key: object) -> Float64:
    """Uniform random scores (N,) from 0 to 1, the same for the same ``key``."""
    return generator_for(RANDOM, *key).random(patches)


class RandomBaseline:
    """Random scores as a method, the same for all bags of one size."""

    unit: Unit = "attribution"
    signed = False
    class_specific = False

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:  # noqa: ARG002
        scores = random_scores(len(features), len(features)).astype("float32")
        return Attribution(torch.from_numpy(scores))
