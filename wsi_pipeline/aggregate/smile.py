"""Sparse attention: attention-based MIL in which most patches weigh exactly nothing."""

from __future__ import annotations

from torch import Tensor, nn

from . import WeightedMean, models
from .abmil import AttentionMIL
from .model_options import check_choice, check_counts, check_dropout, check_flag
from .sparse import entmax15, sparsemax

_NORMALISERS = {"sparsemax": sparsemax, "entmax15": entmax15}


class SparseAttentionMIL(AttentionMIL):
    """The aggregator of Lu et al., "SMILE: Sparse-Attention based Multiple Instance Contrastive Learning for Glioma
    Sub-Type Classification Using Pathological Images", MICCAI Workshop on Computational Pathology, PMLR 156, 2021.

    Attention-based MIL as ``abmil`` has it, with a = sparsemax of the scores (Martins and Astudillo, ICML 2016) or
    their 1.5-entmax (Peters, Niculae and Martins, ACL 2019) in place of softmax: a_k >= 0, they sum to 1, and
    patches with low scores have exactly 0, in training and at test. Those patches get no gradient.

    Deviations: the paper's contrastive learning of the patch encoder is the encoder's matter; the sparse map is an
    option, and so is the gate.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        normalise: str,
        gated: bool,
        hidden: int,
        attention_dim: int,
        dropout: float,
    ) -> None:
        super().__init__(dim, classes, gated=gated, hidden=hidden, attention_dim=attention_dim, dropout=dropout)
        self.normalise = _NORMALISERS[normalise]

    def weigh(self, scores: Tensor) -> Tensor:
        """Attention from scores, (N,) -> (N,), most of it 0."""
        return self.normalise(scores)

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean | None:  # noqa: ARG002
        """None: a sparse weight depends on which other patches are there, not only on their sum."""
        return None


@models.register("smile", paper="Lu et al., COMPAY 2021", class_specific_attention=False)
def smile(
    dim: int,
    classes: int,
    *,
    normalise: str = "sparsemax",
    gated: bool = True,
    hidden: int = 512,
    attention_dim: int = 128,
    dropout: float = 0.25,
) -> nn.Module:
    """Attention-based MIL with sparse weights: low scores weigh exactly 0.

    ``normalise``: "sparsemax", or "entmax15", which lies between it and softmax.
    """
    check_choice("normalise", normalise, tuple(_NORMALISERS))
    check_flag("gated", gated)
    check_counts(hidden=hidden, attention_dim=attention_dim)
    check_dropout(dropout)
    return SparseAttentionMIL(
        dim, classes, normalise=normalise, gated=gated, hidden=hidden, attention_dim=attention_dim, dropout=dropout
    )
