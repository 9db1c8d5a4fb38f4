"""Max pooling: the bag is, for each class, its most convincing patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import MILOutput, models
from .model_options import check_counts, check_dropout


class MaxPooling(nn.Module):
    """An instance classifier, and for each class the largest of the instances' logits.

    The instance-level approach with the maximum as pooling in Ilse, Tomczak and Welling, "Attention-based Deep
    Multiple Instance Learning", ICML 2018. Deviation: the maximum is taken of logits, not of probabilities, for each
    class on its own. The gradient reaches the winning patches only.
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
        """Logits (C,); attention (C, N), 1 at each class's winning patch (the first of equals) and 0 elsewhere."""
        instance_logits: Tensor = self.classify(self.embed(features))  # (N, C)
        logits, winners = instance_logits.max(dim=0)  # (C,), (C,)
        attention = torch.zeros_like(instance_logits.T).scatter(1, winners[:, None], 1.0)  # (C, N)
        return MILOutput(logits, attention)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What each patch adds to each logit, (N, C): w_c · h_k of the winner, 0 for all others."""
        instance_logits: Tensor = self.classify(self.embed(features))  # (N, C)
        logits, winners = instance_logits.max(dim=0)  # (C,), (C,)
        return torch.zeros_like(instance_logits).scatter(0, winners[None], (logits - self.classify.bias)[None])

    def bias(self) -> Tensor:
        """The classifier's bias, (C,)."""
        return self.classify.bias


@models.register("max", paper="Ilse et al., ICML 2018", class_specific_attention=True)
def max_pooling(dim: int, classes: int, *, hidden: int = 512, dropout: float = 0.25) -> nn.Module:
    """The most convincing patch of each class."""
    check_counts(hidden=hidden)
    check_dropout(dropout)
    return MaxPooling(dim, classes, hidden, dropout)
