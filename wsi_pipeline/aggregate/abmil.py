"""Attention-based MIL: the bag is a weighted mean of its patches, and the weights are learnt."""

from __future__ import annotations

from torch import Tensor, nn

from . import MILOutput, WeightedMean, models
from .model_options import check_counts, check_dropout, check_flag


class AttentionMIL(nn.Module):
    """Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.

    With h_k the embedded patch, a = softmax_k(w · tanh(V h_k)), or with a gate w · (tanh(V h_k) * sigmoid(U h_k));
    z = sum_k a_k h_k; logits = W z + b.

    Deviations: the patch encoder is fixed, so the embedding is one linear layer with ReLU (as in Lu et al., CLAM,
    Nature Biomedical Engineering 2021) and dropout behind it; V and U have biases; one softmax logit for each class in
    place of one sigmoid. w has no bias: softmax would not see it. ``hidden`` None: no embedding, h_k is the feature
    itself (with dropout), as in models that others trained on features directly.
    """

    def __init__(
        self, dim: int, classes: int, *, gated: bool, hidden: int | None, attention_dim: int, dropout: float
    ) -> None:
        super().__init__()
        layers = [] if hidden is None else [nn.Linear(dim, hidden), nn.ReLU()]
        hidden = dim if hidden is None else hidden
        self.embed = nn.Sequential(*layers, nn.Dropout(dropout))
        self.attend = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Tanh())  # V
        self.gate = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Sigmoid()) if gated else None  # U
        self.score = nn.Linear(attention_dim, 1, bias=False)  # w
        self.classify = nn.Linear(hidden, classes)

    @property
    def patch_embedding(self) -> nn.Module:
        """Patches (N, D) -> (N, hidden), each alone."""
        return self.embed

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:  # noqa: ARG002
        """Logits (C,) and the attention a, (N,)."""
        embedded, attention = self._attended(features)
        return MILOutput(self.classify(attention @ embedded), attention)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What each patch adds to each logit, (N, C): a_k w_c · h_k."""
        embedded, attention = self._attended(features)
        return attention[:, None] * (embedded @ self.classify.weight.T)

    def bias(self) -> Tensor:
        """The classifier's bias, (C,)."""
        return self.classify.bias

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean | None:  # noqa: ARG002
        """The parts of the mean: scores of the patches, w_c · h_k, and the bias."""
        embedded, scores = self._scored(features)
        return WeightedMean(scores, embedded @ self.classify.weight.T, self.classify.bias)

    def _scored(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded patches (N, hidden) and their scores (N, 1) before the softmax."""
        embedded: Tensor = self.embed(features)
        hints: Tensor = self.attend(embedded)  # (N, attention_dim)
        if self.gate is not None:
            hints = hints * self.gate(embedded)
        scores: Tensor = self.score(hints)
        return embedded, scores

    def _attended(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedded, scores = self._scored(features)
        return embedded, self.weigh(scores.squeeze(1))

    def weigh(self, scores: Tensor) -> Tensor:
        """Attention from scores, (N,) -> (N,)."""
        return scores.softmax(0)


@models.register("abmil", paper="Ilse et al., ICML 2018", class_specific_attention=False)
def abmil(
    dim: int,
    classes: int,
    *,
    gated: bool = True,
    hidden: int | None = 512,
    attention_dim: int = 128,
    dropout: float = 0.25,
) -> nn.Module:
    """Attention-based MIL, plain or gated: an exact sum of what its patches contribute.

    ``hidden``: units of the embedding; null for none.
    """
    check_flag("gated", gated)
    check_counts(attention_dim=attention_dim, **({} if hidden is None else {"hidden": hidden}))
    check_dropout(dropout)
    return AttentionMIL(dim, classes, gated=gated, hidden=hidden, attention_dim=attention_dim, dropout=dropout)
