"""Mean pooling: the bag is the mean of its embedded patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import MILOutput, WeightedMean, models
from .model_options import check_counts, check_dropout


class MeanPooling(nn.Module):
    """Mean of embedded instances, then a linear classifier.

    The embedding-level approach with the mean as pooling in Ilse, Tomczak and Welling, "Attention-based Deep
    Multiple Instance Learning", ICML 2018. The embedding is the one of ``abmil``, so the two differ by attention only.
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.classify = nn.Linear(hidden, classes)

    @property
    def patch_embedding(self) -> nn.Module:
        """Patches (N, D) -> (N, hidden), each alone."""
        return self.embed

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:  # noqa: ARG002
        """Logits (C,). There is no attention: every patch weighs 1/N."""
        embedded: Tensor = self.embed(features)  # (N, hidden)
        return MILOutput(self.classify(embedded.mean(0)), None)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What each patch adds to each logit, (N, C): w_c · h_k / N."""
        embedded: Tensor = self.embed(features)  # (N, hidden)
        return embedded @ self.classify.weight.T / len(features)

    def bias(self) -> Tensor:
        """The classifier's bias, (C,)."""
        return self.classify.bias

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean:  # noqa: ARG002
        """The parts of the mean: equal weights, w_c · h_k, and the bias."""
        values = self.embed(features) @ self.classify.weight.T  # (N, C)
        return WeightedMean(torch.zeros_like(values[:, :1]), values, self.classify.bias)


@models.register("mean", paper="Ilse et al., ICML 2018", class_specific_attention=False)
def mean(dim: int, classes: int, *, hidden: int = 512, dropout: float = 0.25) -> nn.Module:
    """Mean of the embedded patches; every patch weighs the same."""
    check_counts(hidden=hidden)
    check_dropout(dropout)
    return MeanPooling(dim, classes, hidden, dropout)
