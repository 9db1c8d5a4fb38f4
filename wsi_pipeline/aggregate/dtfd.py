"""DTFD-MIL: a slide is split into pseudo-bags, and what they distil is a second, small bag."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import MILOutput, TrainingOutput, models
from .model_options import check_choice, check_counts, check_dropout


class GatedAttention(nn.Module):
    """Scores w · (tanh(V h) * sigmoid(U h)). Parameter names are those of the published implementation."""

    def __init__(self, hidden: int, attention_dim: int) -> None:
        super().__init__()
        self.attention_V = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Tanh())
        self.attention_U = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Sigmoid())
        self.attention_weights = nn.Linear(attention_dim, 1)

    def forward(self, embedded: Tensor) -> Tensor:
        """(n, hidden) -> scores (n,), before any softmax."""
        scores: Tensor = self.attention_weights(self.attention_V(embedded) * self.attention_U(embedded))  # (n, 1)
        return scores.squeeze(1)


class Reduction(nn.Module):
    """relu(W x), no bias."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, dim) -> (N, hidden)."""
        embedded: Tensor = self.fc1(features).relu()
        return embedded


class Classifier(nn.Module):
    """Dropout and a linear layer."""

    def __init__(self, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, embedded: Tensor) -> Tensor:
        """(..., hidden) -> (..., C)."""
        logits: Tensor = self.fc(self.dropout(embedded))
        return logits


class SecondTier(nn.Module):
    """Attention over distilled features, and its classifier."""

    def __init__(self, hidden: int, classes: int, attention_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = GatedAttention(hidden, attention_dim)
        self.classifier = Classifier(hidden, classes, dropout)

    def forward(self, distilled: Tensor) -> tuple[Tensor, Tensor]:
        """(J, hidden) -> logits (C,) and attention (J,)."""
        weights = self.attention(distilled).softmax(0)
        return self.classifier(weights @ distilled), weights


class FirstTier(NamedTuple):
    """What the first tier says of P pseudo-bags."""

    embedded: Tensor  # (N, hidden)
    split: Tensor  # (P, N) bool: which patches are in which pseudo-bag
    attention: Tensor  # (P, N) each row sums to 1 over its pseudo-bag; 0 elsewhere
    pooled: Tensor  # (P, hidden) attention-weighted means


class DTFD(nn.Module):
    """Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning", CVPR 2022.

    Tier 1 is gated attention-based MIL in each of M pseudo-bags, which all carry the slide's label. Tier 2 is gated
    attention-based MIL over what they distil: "afs" the attention-weighted mean of each; "maxs" the embedded patch
    surest to be of the last class by its instance probability; "maxmins" that one and the least sure. The logits are
    tier 2's. Parameter names: the published checkpoint's four dictionaries, each under its own name.

    Every form is an exact sum over patches: with A_k tier 2's weight on patch k (for "afs" times tier 1's in its
    pseudo-bag; for the others 0 where k is not distilled), logits = sum_k A_k w_c · h_k + b_c. A is the attention.

    Training draws a random split from torch's global generator. Otherwise the split is fixed: patches sorted by row,
    then column, are dealt to the pseudo-bags in turn. So the order of the list changes nothing (but patches in one
    place keep theirs), and each pseudo-bag is spread over the tissue, as a random one is.

    Tier 2's loss does not reach tier 1: the published code clears such gradients before a step uses them, and
    ``training_output`` detaches what tier 2 is given. A call keeps the whole graph, for explanations.

    Deviations: the published test shuffles, here it is fixed. N < M patches make N pseudo-bags, and their streams are
    repeated in turn. Patches are ranked with the paper's factor K, which the published code leaves out: with up to
    two outputs the order is the same. One output has no probability, so the logit itself ranks.
    """

    def __init__(
        self, dim: int, classes: int, *, distill: str, pseudo_bags: int, hidden: int, attention_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.distill = distill
        self.pseudo_bags = pseudo_bags
        self.dim_reduction = Reduction(dim, hidden)
        self.attention = GatedAttention(hidden, attention_dim)
        self.classifier = Classifier(hidden, classes, dropout)
        self.att_classifier = SecondTier(hidden, classes, attention_dim, dropout)

    @property
    def patch_embedding(self) -> nn.Module:
        """Patches (N, D) -> (N, hidden), each alone."""
        return self.dim_reduction

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        """Logits (C,) of tier 2 and the effective attention A, (N,)."""
        return MILOutput(*self._second_tier(self._first_tier(features, xy)))

    def training_output(self, features: Tensor, xy: Tensor, label: int | None) -> TrainingOutput:  # noqa: ARG002
        """M streams of tier 1, each of weight 1 / M, and tier 2's of weight 1."""
        tier = self._first_tier(features, xy)
        said = self.classifier(tier.pooled)  # (P, C)
        first = tuple((1 / self.pseudo_bags, said[m % len(said)]) for m in range(self.pseudo_bags))
        given = FirstTier(tier.embedded.detach(), tier.split, tier.attention.detach(), tier.pooled.detach())
        logits, _ = self._second_tier(given)
        return TrainingOutput((*first, (1.0, logits)), logits.new_zeros(()))

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:
        """What each patch adds to each logit, (N, C): A_k w_c · h_k with tier 2's w."""
        tier = self._first_tier(features, xy)
        _, attention = self._second_tier(tier)  # (N,)
        return attention[:, None] * (tier.embedded @ self.att_classifier.classifier.fc.weight.T)

    def bias(self) -> Tensor:
        """The bias of tier 2's classifier, (C,)."""
        return self.att_classifier.classifier.fc.bias

    def instance_logits(self, features: Tensor, xy: Tensor) -> Tensor:
        """L_k^c = K a_k w_c · h_k of tier 1, (N, C), K the number of patches in k's pseudo-bag.

        softmax_c is the paper's instance probability. The mean over a pseudo-bag plus tier 1's bias is what tier 1
        says of it, ``pseudo_bag_logits``. The bias is in no L: the paper ranks without it.
        """
        return self._instance_logits(self._first_tier(features, xy))

    def pseudo_bag_logits(self, features: Tensor, xy: Tensor) -> Tensor:
        """What tier 1 says of each pseudo-bag, (P, C), P = min(M, N)."""
        logits: Tensor = self.classifier(self._first_tier(features, xy).pooled)
        return logits

    def split(self, xy: Tensor) -> Tensor:
        """Which of N patches is in which pseudo-bag, (P, N) bool: random in training, else by position."""
        turn = torch.randperm(len(xy)).to(xy.device) if self.training else _reading_order(xy).argsort()  # (N,)
        return turn % self.pseudo_bags == torch.arange(min(len(xy), self.pseudo_bags), device=xy.device)[:, None]

    def _first_tier(self, features: Tensor, xy: Tensor) -> FirstTier:
        embedded: Tensor = self.dim_reduction(features)  # (N, hidden)
        split = self.split(xy)  # (P, N)
        attention = self.attention(embedded).masked_fill(~split, -torch.inf).softmax(1)  # (P, N)
        return FirstTier(embedded, split, attention, attention @ embedded)

    def _second_tier(self, tier: FirstTier) -> tuple[Tensor, Tensor]:
        """Logits (C,) and A (N,)."""
        if self.distill == "afs":
            logits, weights = self.att_classifier(tier.pooled)
            return logits, weights @ tier.attention
        picked = self._picked(tier)  # (J,)
        logits, weights = self.att_classifier(tier.embedded[picked])
        return logits, weights.new_zeros(len(tier.embedded)).index_add(0, picked, weights)

    @torch.no_grad()
    def _picked(self, tier: FirstTier) -> Tensor:
        """The patches that are distilled, (P,) or (2 P,): the surest of each pseudo-bag, then the least sure."""
        certainty = _log_odds(self._instance_logits(tier))  # (N,)
        surest = certainty.masked_fill(~tier.split, -torch.inf).argmax(1)
        if self.distill == "maxs":
            return surest
        return torch.cat([surest, certainty.masked_fill(~tier.split, torch.inf).argmin(1)])

    def _instance_logits(self, tier: FirstTier) -> Tensor:
        scaled = (tier.split.sum(1, keepdim=True) * tier.attention).sum(0)  # (N,) K a_k
        return scaled[:, None] * (tier.embedded @ self.classifier.fc.weight.T)


def _reading_order(xy: Tensor) -> Tensor:
    """Indices (N,) of positions (N, 2) by y, then x, then place in the list."""
    by_column = xy[:, 0].argsort(stable=True)
    return by_column[xy[by_column, 1].argsort(stable=True)]


def _log_odds(logits: Tensor) -> Tensor:
    """Of the last class against the others, (N, C) -> (N,): ranks as its probability does, and never saturates."""
    last = logits[:, -1]
    return last if logits.shape[1] == 1 else last - logits[:, :-1].logsumexp(1)


@models.register("dtfd", paper="Zhang et al., CVPR 2022", class_specific_attention=False)
def dtfd(
    dim: int,
    classes: int,
    *,
    distill: str = "afs",
    pseudo_bags: int = 4,
    hidden: int = 512,
    attention_dim: int = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """DTFD-MIL: attention-based MIL in pseudo-bags, and again over what they distil: "afs", "maxs" or "maxmins".

    The last two rank patches by the last class, so more than two classes, or several at once, are better served by
    "afs". ``dropout`` stands before both classifiers; the published code uses none.
    """
    check_choice("distill", distill, ("afs", "maxs", "maxmins"))
    check_counts(pseudo_bags=pseudo_bags, hidden=hidden, attention_dim=attention_dim)
    check_dropout(dropout)
    return DTFD(
        dim,
        classes,
        distill=distill,
        pseudo_bags=pseudo_bags,
        hidden=hidden,
        attention_dim=attention_dim,
        dropout=dropout,
    )
