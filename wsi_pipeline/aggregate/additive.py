"""Additive MIL: each patch speaks for itself, and the slide's logits are the sum of what they say."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from . import MILOutput, models
from .model_options import check_counts, check_dropout, check_flag


class AdditiveMIL(nn.Module):
    """Javed et al., "Additive MIL: Intrinsically Interpretable Multiple Instance Learning for Pathology", NeurIPS
    2022 (https://arxiv.org/abs/2206.01794).

    Attention a as in ``abmil``, then a classifier psi on each weighted patch, before they are added:
    p_k = psi(a_k h_k), logits = sum_k p_k. psi is a linear layer, ReLU and a linear layer, so unlike in ``abmil`` the
    evidence of a patch need not be proportional to its weight.

    Deviation, ``centred``: p_k = psi(a_k h_k) - psi(0), and the last layer's bias is added once. Published, every
    patch adds psi(0) whatever its weight, so the logits drift with the number of patches, and a model trained on
    samples of slides answers otherwise on whole ones. Centred, a patch of weight 0 adds exactly 0. Both are exact sums.
    The embedding in front is ``abmil``'s, since the patch encoder is fixed.
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
        """Patches (N, D) -> (N, hidden), each alone."""
        return self.embed

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:  # noqa: ARG002
        """Logits (C,) and the attention a, (N,)."""
        embedded, attention = self._attended(features)
        return MILOutput(self.bias() + self._evidence(embedded, attention).sum(0), attention)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What each patch adds to each logit, p (N, C)."""
        return self._evidence(*self._attended(features))

    def bias(self) -> Tensor:
        """The last layer's bias, (C,); 0 where it is in every patch's evidence (not ``centred``)."""
        return self.outer.bias if self.centred else self.outer.bias.new_zeros(len(self.outer.bias))

    def _attended(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedded: Tensor = self.embed(features)  # (N, hidden)
        hints: Tensor = self.attend(embedded)  # (N, attention_dim)
        if self.gate is not None:
            hints = hints * self.gate(embedded)
        scores: Tensor = self.score(hints)  # (N, 1)
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
    """Additive MIL: a classifier on each weighted patch, and the slide is their sum.

    ``centred``: a patch of no weight adds nothing; false is the published form, in which each adds a constant.
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
