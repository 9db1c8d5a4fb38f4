"""Max pooling: each class's logit is that of the patch with the highest logit for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import MILOutput, models
from .model_options import check_counts, check_dropout


class MaxPooling(nn.Module):
    """A classifier of patches; the bag's logits are the largest of the patches' logits, class by class.

    The instance-level approach with the maximum as pooling in Ilse, Tomczak and Welling, "Attention-based Deep
    Multiple Instance Learning", ICML 2018. Deviation: the maximum is over logits instead of probabilities, separately
    for each class. Only the winning patches receive a gradient.
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.classify = nn.Linear(hidden, classes)

    @property
    def patch_embedding(self) -> nn.Module:
        """Module that maps each patch independently, (N, D) -> (N, hidden)."""
        return self.embed

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:  # noqa: ARG002
        """Logits (C,), and attention (C, N): 1 at each class's winning patch (the first of ties), 0 elsewhere."""
        instance_logits: Tensor = self.classify(self.embed(features))  # (N, C)
        logits, winners = instance_logits.max(dim=0)  # (C,), (C,)
        attention = torch.zeros_like(instance_logits.T).scatter(1, winners[:, None], 1.0)  # (C, N)
        return MILOutput(logits, attention)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """Contribution of each patch to each logit, (N, C): w_c · h_k for the winner, 0 for all others."""
        instance_logits: Tensor = self.classify(self.embed(features))  # (N, C)
        logits, winners = instance_logits.max(dim=0)  # (C,), (C,)
        return torch.zeros_like(instance_logits).scatter(0, winners[None], (logits - self.classify.bias)[None])

    def bias(self) -> Tensor:
        """The classifier's bias, (C,)."""
        return self.classify.bias


@models.register("max", paper="Ilse et al., ICML 2018", class_specific_attention=True)
def max_pooling(dim: int, classes: int, *, hidden: int = 512, dropout: float = 0.25) -> nn.Module:
    """Max pooling: the patch with the highest logit decides, class by class.

    Parameters
    ----------
    dim, classes : int
        Features per patch, and number of logits.
    hidden : int
        Units of the embedding.
    dropout : float
        Dropout behind the embedding.
    """
    check_counts(hidden=hidden)
    check_dropout(dropout)
    return MaxPooling(dim, classes, hidden, dropout)
