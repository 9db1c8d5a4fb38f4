"""DSMIL: each class finds its most convincing patch, and all others count by how like that one they are."""

from __future__ import annotations

import math

from torch import Tensor, nn

from . import MILOutput, TrainingOutput, models
from .model_options import check_choice, check_counts, check_dropout, check_flag


class InstanceClassifier(nn.Module):
    """The first stream: one linear layer on each patch."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, classes))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        logits: Tensor = self.fc(features)
        return logits


class BagClassifier(nn.Module):
    """The second stream: queries q, values v, and a classifier that sees every class's mean value."""

    def __init__(self, dim: int, classes: int, *, query_dim: int, nonlinear: bool, values: str, dropout: float) -> None:
        super().__init__()
        self.q: nn.Module = nn.Linear(dim, query_dim)
        if nonlinear:
            self.q = nn.Sequential(self.q, nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh())
        self.v: nn.Module = nn.Identity()
        if values != "identity":
            layers = [nn.Dropout(dropout), nn.Linear(dim, dim)]
            self.v = nn.Sequential(*layers, nn.ReLU()) if values == "relu" else nn.Sequential(*layers)
        self.fcc = nn.Conv1d(classes, classes, kernel_size=dim)

    def attend(self, features: Tensor, instance_logits: Tensor) -> Tensor:
        """Each class's attention, (C, N): how like its critical patch's query the others' are."""
        queries: Tensor = self.q(features)  # (N, Q)
        critical = queries[instance_logits.argmax(0)]  # (C, Q)
        scores: Tensor = critical @ queries.T / math.sqrt(queries.shape[1])
        return scores.softmax(1)


class DSMIL(nn.Module):
    """Li, Li and Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with
    Self-supervised Contrastive Learning", CVPR 2021 (https://arxiv.org/abs/2011.08939).

    First stream: instance logits s_k = W x_k + b, and the critical patch m_c = argmax_k s_kc of each class. Second:
    A_ck = softmax_k(q_k · q_{m_c} / sqrt(Q)), B_c = sum_k A_ck v_k, logits y_c = sum_{c'} w_cc' · B_c' + b_c, which
    is a convolution as long as the features are wide. Loss: half the task's on y, half on max_k s_k.

    Parameter names and shapes are those of the published implementation. Its q is two layers, ``nonlinear``, or one;
    its v is the feature itself ("identity"), dropout, linear layer and ReLU ("relu", there ``passing_v``), or the same
    without ReLU ("linear", its first versions).

    The logits are the bag prediction y alone, as the published code's default at test is; where it averages the
    probabilities of y and max_k s_k, ``instance_logits`` has the rest. Deviations: the task's loss (for classes that
    exclude each other a softmax) in place of one sigmoid a class; torch's own initial weights.
    """

    def __init__(self, dim: int, classes: int, *, query_dim: int, nonlinear: bool, values: str, dropout: float) -> None:
        super().__init__()
        self.i_classifier = InstanceClassifier(dim, classes)
        self.b_classifier = BagClassifier(
            dim, classes, query_dim=query_dim, nonlinear=nonlinear, values=values, dropout=dropout
        )

    def forward(self, features: Tensor, xy: Tensor) -> MILOutput:
        """Logits y (C,) and each class's attention A (C, N)."""
        attention = self.b_classifier.attend(features, self.instance_logits(features, xy))
        return MILOutput(self._logits(features, attention), attention)

    def training_output(self, features: Tensor, xy: Tensor, label: int | None) -> TrainingOutput:  # noqa: ARG002
        """Two streams of weight 1/2: the bag's logits, and of each class the largest instance logit."""
        instance_logits = self.instance_logits(features, xy)
        logits = self._logits(features, self.b_classifier.attend(features, instance_logits))
        return TrainingOutput(((0.5, logits), (0.5, instance_logits.max(0).values)), logits.new_zeros(()))

    def instance_logits(self, features: Tensor, xy: Tensor) -> Tensor:  # noqa: ARG002
        """What the first stream says of each patch, s (N, C)."""
        logits: Tensor = self.i_classifier(features)
        return logits

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:
        """What each patch adds to each logit, (N, C): sum_c' A_c'k w_cc' · v_k."""
        attention = self.b_classifier.attend(features, self.instance_logits(features, xy))
        values: Tensor = self.b_classifier.v(features)  # (N, D)
        weight = self.b_classifier.fcc.weight  # (C, C', D)
        evidence = values.new_zeros(len(values), len(weight))
        for c, looked in enumerate(attention):
            evidence = evidence + looked[:, None] * (values @ weight[:, c].T)
        return evidence

    def bias(self) -> Tensor:
        """The bag classifier's bias, (C,)."""
        return self.b_classifier.get_parameter("fcc.bias")

    def _logits(self, features: Tensor, attention: Tensor) -> Tensor:
        pooled = attention @ self.b_classifier.v(features)  # (C, D)
        logits: Tensor = self.b_classifier.fcc(pooled[None])  # (1, C, 1)
        return logits[0, :, 0]


@models.register("dsmil", paper="Li et al., CVPR 2021", class_specific_attention=True)
def dsmil(
    dim: int,
    classes: int,
    *,
    query_dim: int = 128,
    nonlinear: bool = True,
    values: str = "identity",
    dropout: float = 0.0,
) -> nn.Module:
    """DSMIL: attention by likeness to each class's critical patch, which a second stream of instances finds.

    ``nonlinear``: two layers of queries, not one. ``values``: "identity", "linear" or "relu". ``dropout`` stands
    before the values' layer; the identity has none.
    """
    check_counts(query_dim=query_dim)
    check_flag("nonlinear", nonlinear)
    check_choice("values", values, ("identity", "linear", "relu"))
    check_dropout(dropout)
    return DSMIL(dim, classes, query_dim=query_dim, nonlinear=nonlinear, values=values, dropout=dropout)
