"""Sparse attention: attention-based MIL in which most patches have weight exactly 0."""

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

    Attention-based MIL as in ``abmil``, with a = sparsemax of the scores (Martins and Astudillo, ICML 2016) or their
    1.5-entmax (Peters, Niculae and Martins, ACL 2019) instead of softmax: the a_k are at least 0 and sum to 1, and
    patches with low scores have exactly 0, in training and at test. Those patches receive no gradient.

    Deviations: the paper's contrastive learning of the patch encoder is left out, as the encoder is fixed; the sparse
    function and the gate are options.
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
        """Turn scores (N,) into attention (N,), most of it 0."""
        return self.normalise(scores)

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean | None:  # noqa: ARG002
        """None: a sparse weight depends on the other patches' scores, not only on a sum over them."""
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
    """Attention-based MIL with sparse weights: patches with low scores have weight exactly 0.

    Parameters
    ----------
    dim, classes : int
        Features per patch, and number of logits.
    normalise : str
        "sparsemax", or "entmax15", which lies between sparsemax and softmax.
    gated, hidden, attention_dim, dropout : bool, int, int, float
        As in ``abmil``.
    """
    check_choice("normalise", normalise, tuple(_NORMALISERS))
    check_flag("gated", gated)
    check_counts(hidden=hidden, attention_dim=attention_dim)
    check_dropout(dropout)
    return SparseAttentionMIL(
        dim, classes, normalise=normalise, gated=gated, hidden=hidden, attention_dim=attention_dim, dropout=dropout
    )
