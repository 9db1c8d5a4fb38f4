"""Additive MIL: every patch is classified, and the slide's logits are the sum of the patches' logits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from . import MILOutput, models
from .model_options import check_counts, check_dropout, check_flag


class AdditiveMIL(nn.Module):
    """Javed et al., "Additive MIL: Intrinsically Interpretable Multiple Instance Learning for Pathology", NeurIPS
    2022 (https://arxiv.org/abs/2206.01794).

    Attention a as in ``abmil``, then a classifier psi on each weighted patch before the sum:
    p_k = psi(a_k h_k), logits = sum_k p_k. psi is a linear layer, ReLU and a linear layer, so that, unlike in
    ``abmil``, the evidence of a patch need not be proportional to its weight.

    Deviation, ``centred``: p_k = psi(a_k h_k) - psi(0), and the last layer's bias is added once. In the published form
    every patch adds psi(0) whatever its weight, so the logits drift with the number of patches, and a model trained on
    sampled patches gives other logits on whole slides. Centred, a patch of weight 0 adds exactly 0. Both forms are
    exact sums. The embedding in front is that of ``abmil``, as the patch encoder is fixed.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        gated: bool,
        centred: bool,
        hidden: int,
        attention_dim: int,
        classifier_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.centred = centred
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.attend = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Tanh())  # V
        self.gate = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Sigmoid()) if gated else None  # U
        self.score = nn.Linear(attention_dim, 1, bias=False)  # w
        self.inner = nn.Linear(hidden, classifier_dim)
        self.outer = nn.Linear(classifier_dim, classes)

    @property
    def patch_embedding(self) -> nn.Module:
        """Module that maps each patch independently, (N, D) -> (N, hidden)."""
        return self.embed

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:  # noqa: ARG002
        """Logits (C,) and the attention a, (N,)."""
        embedded, attention = self._attended(features)
        return MILOutput(self.bias() + self._evidence(embedded, attention).sum(0), attention)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """Contribution of each patch to each logit, p (N, C)."""
        return self._evidence(*self._attended(features))

    def bias(self) -> Tensor:
        """The last layer's bias, (C,); 0 where it is part of every patch's evidence (not ``centred``)."""
        return self.outer.bias if self.centred else self.outer.bias.new_zeros(len(self.outer.bias))

    def _attended(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedded: Tensor = self.embed(features)  # (N, hidden)
        units: Tensor = self.attend(embedded)  # (N, attention_dim)
        if self.gate is not None:
            units = units * self.gate(embedded)
        scores: Tensor = self.score(units)  # (N, 1)
        return embedded, scores.squeeze(1).softmax(0)

    def _evidence(self, embedded: Tensor, attention: Tensor) -> Tensor:
        units = self.inner(attention[:, None] * embedded).relu()  # (N, classifier_dim)
        if self.centred:
            return functional.linear(units - self.inner.bias.relu(), self.outer.weight)
        evidence: Tensor = self.outer(units)
        return evidence


@models.register("additive", paper="Javed et al., NeurIPS 2022", class_specific_attention=False)
def additive(
    dim: int,
    classes: int,
    *,
    gated: bool = True,
    centred: bool = True,
    hidden: int = 512,
    attention_dim: int = 128,
    classifier_dim: int = 256,
    dropout: float = 0.25,
) -> nn.Module:
    """Additive MIL: a classifier on each weighted patch; the slide's logits are their sum.

    Parameters
    ----------
    dim, classes : int
        Features per patch, and number of logits.
    gated : bool
        Gated attention, as in ``abmil``.
    centred : bool
        A patch of weight 0 adds nothing; False is the published form, in which every patch adds a constant.
    hidden, attention_dim, classifier_dim : int
        Units of the embedding, of the attention network and of the patch classifier.
    dropout : float
        Dropout behind the embedding.
    """
    check_flag("gated", gated)
    check_flag("centred", centred)
    check_counts(hidden=hidden, attention_dim=attention_dim, classifier_dim=classifier_dim)
    check_dropout(dropout)
    return AdditiveMIL(
        dim,
        classes,
        gated=gated,
        centred=centred,
        hidden=hidden,
        attention_dim=attention_dim,
        classifier_dim=classifier_dim,
        dropout=dropout,
    )
