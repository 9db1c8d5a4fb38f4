"""CLAM: attention-based MIL that also learns to tell the patches it looks at from those it does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError
from . import MILOutput, TrainingOutput, WeightedMean, models
from .model_options import check_choice, check_counts, check_dropout, check_flag


class PlainScores(nn.Module):
    """Scores W tanh(V h) + b for each branch. Parameter names are those of the published implementation."""

    def __init__(self, hidden: int, attention_dim: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.module = nn.Sequential(
            nn.Linear(hidden, attention_dim), nn.Tanh(), nn.Dropout(dropout), nn.Linear(attention_dim, branches)
        )

    def forward(self, embedded: Tensor) -> Tensor:
        """(N, hidden) -> (N, branches), before any softmax."""
        scores: Tensor = self.module(embedded)
        return scores


class GatedScores(nn.Module):
    """Scores W (tanh(V h) * sigmoid(U h)) + b for each branch. Parameter names: the published implementation's."""

    def __init__(self, hidden: int, attention_dim: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Tanh(), nn.Dropout(dropout))  # V
        self.attention_b = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Sigmoid(), nn.Dropout(dropout))  # U
        self.attention_c = nn.Linear(attention_dim, branches)  # W

    def forward(self, embedded: Tensor) -> Tensor:
        """(N, hidden) -> (N, branches), before any softmax."""
        scores: Tensor = self.attention_c(self.attention_a(embedded) * self.attention_b(embedded))
        return scores


class CLAM(nn.Module):
    """Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nat Biomed Eng
    5, 555-570, 2021 (https://doi.org/10.1038/s41551-020-00682-w).

    h_k the embedded patch; a = softmax over k of gated scores, of one branch for all classes (SB) or of one for each
    (MB); logits y_c = w_c · sum_k a_ck h_k + b_c. In training, the classifier of instances of the slide's class is
    taught that the ``k_sample`` patches with the most attention belong to it and those with the least do not; with
    ``subtyping`` (classes that exclude each other) the other classes' are taught that their most attended do not
    belong to them. Loss: ``bag_weight`` * task loss + (1 - ``bag_weight``) * instance loss.

    Parameter names and shapes are those of the published implementation (its "small" model: hidden 512, attention 256;
    "big": 384), in the layout with dropout.

    Deviations: a bag of fewer than 2 ``k_sample`` patches has half of them taught as in the class and as many as not,
    so none is taught both (published: an error below ``k_sample`` patches); a single patch is taught as in the class.
    ``dropout`` is that of the embedding and of the attention alike. Without a label (a task with no single class)
    there is no instance loss.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        multi: bool,
        gated: bool,
        hidden: int,
        attention_dim: int,
        dropout: float,
        k_sample: int,
        bag_weight: float,
        inst_loss: str,
        subtyping: bool,
    ) -> None:
        super().__init__()
        self.multi = multi
        self.k_sample = k_sample
        self.bag_weight = bag_weight
        self.inst_loss = inst_loss
        self.subtyping = subtyping
        scores = (GatedScores if gated else PlainScores)(hidden, attention_dim, classes if multi else 1, dropout)
        self.attention_net = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), scores)
        self.classifiers: nn.Linear | nn.ModuleList
        if multi:
            self.classifiers = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(classes))
        else:
            self.classifiers = nn.Linear(hidden, classes)
        self.instance_classifiers = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(classes))

    @property
    def patch_embedding(self) -> nn.Module:
        """Patches (N, D) -> (N, hidden), each alone."""
        return self.attention_net[2]

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:  # noqa: ARG002
        """Logits (C,) and the attention a: (N,) for a single branch, (C, N) for one a class."""
        embedded, attention = self._attended(features)
        return MILOutput(self._logits(embedded, attention), attention if self.multi else attention[0])

    def training_output(self, features: Tensor, xy: Tensor, label: int | None) -> TrainingOutput:  # noqa: ARG002
        """One stream of weight ``bag_weight``; extra is (1 - ``bag_weight``) * instance loss, 0 without a label."""
        embedded, attention = self._attended(features)
        logits = self._logits(embedded, attention)
        extra = logits.new_zeros(())
        if label is not None:
            extra = (1 - self.bag_weight) * self._instance_loss(embedded, attention, label)
        return TrainingOutput(((self.bag_weight, logits),), extra)

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What each patch adds to each logit, (N, C): a_ck w_c · h_k."""
        embedded, attention = self._attended(features)
        return attention.T * (embedded @ self.class_weight().T)

    def bias(self) -> Tensor:
        """The bias of each class's classifier, (C,)."""
        if isinstance(self.classifiers, nn.Linear):
            return self.classifiers.bias
        return torch.cat([layer.get_parameter("bias") for layer in self.classifiers])

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean:  # noqa: ARG002
        """The parts of the mean: scores of each branch, w_c · h_k, and the biases."""
        embedded = self.attention_net[:3](features)  # (N, hidden)
        return WeightedMean(self.attention_net[3](embedded), embedded @ self.class_weight().T, self.bias())

    def instance_logits(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What each class's instance classifier says of each patch, (N, C, 2): not in the class, in it."""
        embedded, _ = self._attended(features)
        return torch.stack([classify(embedded) for classify in self.instance_classifiers], dim=1)

    def instance_probabilities(self, features: Tensor, xy: Tensor) -> Tensor:
        """Each patch's probability of each class by that class's instance classifier, (N, C); rows sum to nothing."""
        return self.instance_logits(features, xy).softmax(2)[..., 1]

    def _attended(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """h (N, hidden) and a (branches, N)."""
        embedded: Tensor = self.attention_net[:3](features)
        scores: Tensor = self.attention_net[3](embedded)  # (N, branches)
        return embedded, scores.T.softmax(1)

    def _logits(self, embedded: Tensor, attention: Tensor) -> Tensor:
        pooled = attention @ embedded  # (branches, hidden)
        return (pooled * self.class_weight()).sum(1) + self.bias()

    def class_weight(self) -> Tensor:
        """w, (C, hidden)."""
        if isinstance(self.classifiers, nn.Linear):
            return self.classifiers.weight
        return torch.cat([layer.get_parameter("weight") for layer in self.classifiers])

    def _instance_loss(self, embedded: Tensor, attention: Tensor, label: int) -> Tensor:
        """Sum over the classes that are taught; with ``subtyping`` all are, and it is their mean."""
        total = embedded.new_zeros(())
        for c, classify in enumerate(self.instance_classifiers):
            ranked = attention[c if self.multi else 0].detach().argsort(descending=True, stable=True)  # (N,)
            if c == label:
                inside, outside = _most_and_least(ranked, self.k_sample)
            elif self.subtyping:
                inside, outside = ranked[:0], ranked[: self.k_sample]
            else:
                continue
            targets = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)])  # (n,)
            logits = classify(embedded[torch.cat([inside, outside])])  # (n, 2)
            total = total + (
                smooth_svm(logits, targets) if self.inst_loss == "svm" else _cross_entropy(logits, targets)
            )
        return total / len(self.instance_classifiers) if self.subtyping else total


def smooth_svm(logits: Tensor, targets: Tensor) -> Tensor:
    """Smooth top-1 SVM loss of Berrada, Zisserman and Kumar, ICLR 2018, margin 1 and temperature 1; mean, ().

    log sum_j exp(s_j + [j != y] - s_y), here for two classes: softplus(1 + s_other - s_y). ``logits`` (n, 2),
    ``targets`` (n,) of 0 and 1.
    """
    ahead = (logits[:, 1] - logits[:, 0]) * (2 * targets - 1)  # (n,) s_y - s_other
    return functional.softplus(1 - ahead).mean()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets)


def _most_and_least(ranked: Tensor, k_sample: int) -> tuple[Tensor, Tensor]:
    """The first and the last ``k_sample`` of ``ranked`` (N,), fewer where they would overlap."""
    k = min(k_sample, len(ranked) // 2)
    return ranked[: max(k, 1)], ranked[len(ranked) - k :]


@models.register("clam_sb", paper="Lu et al., Nat Biomed Eng 2021", class_specific_attention=False)
def clam_sb(
    dim: int,
    classes: int,
    *,
    gated: bool = True,
    hidden: int = 512,
    attention_dim: int = 256,
    dropout: float = 0.25,
    k_sample: int = 8,
    bag_weight: float = 0.7,
    inst_loss: str = "svm",
    subtyping: bool = False,
) -> nn.Module:
    """CLAM with a single attention branch: gated attention, and a clustering loss on the patches at its two ends.

    ``inst_loss``: "svm" or "ce". ``subtyping``: the classes exclude each other in a patch, too.
    """
    _check(gated, hidden, attention_dim, dropout, k_sample, bag_weight, inst_loss, subtyping)
    return CLAM(
        dim,
        classes,
        multi=False,
        gated=gated,
        hidden=hidden,
        attention_dim=attention_dim,
        dropout=dropout,
        k_sample=k_sample,
        bag_weight=bag_weight,
        inst_loss=inst_loss,
        subtyping=subtyping,
    )


@models.register("clam_mb", paper="Lu et al., Nat Biomed Eng 2021", class_specific_attention=True)
def clam_mb(
    dim: int,
    classes: int,
    *,
    gated: bool = True,
    hidden: int = 512,
    attention_dim: int = 256,
    dropout: float = 0.25,
    k_sample: int = 8,
    bag_weight: float = 0.7,
    inst_loss: str = "svm",
    subtyping: bool = False,
) -> nn.Module:
    """CLAM with an attention branch for each class, and a clustering loss on the patches at each one's two ends.

    ``inst_loss``: "svm" or "ce". ``subtyping``: the classes exclude each other in a patch, too.
    """
    _check(gated, hidden, attention_dim, dropout, k_sample, bag_weight, inst_loss, subtyping)
    return CLAM(
        dim,
        classes,
        multi=True,
        gated=gated,
        hidden=hidden,
        attention_dim=attention_dim,
        dropout=dropout,
        k_sample=k_sample,
        bag_weight=bag_weight,
        inst_loss=inst_loss,
        subtyping=subtyping,
    )


def _check(
    gated: bool,
    hidden: int,
    attention_dim: int,
    dropout: float,
    k_sample: int,
    bag_weight: float,
    inst_loss: str,
    subtyping: bool,
) -> None:
    check_flag("gated", gated)
    check_flag("subtyping", subtyping)
    check_counts(hidden=hidden, attention_dim=attention_dim, k_sample=k_sample)
    check_dropout(dropout)
    check_choice("inst_loss", inst_loss, ("svm", "ce"))
    if isinstance(bag_weight, bool) or not isinstance(bag_weight, (int, float)) or not 0 < bag_weight <= 1:
        raise ConfigError(f"model option bag_weight is {bag_weight!r}; it must be above 0 and at most 1")
