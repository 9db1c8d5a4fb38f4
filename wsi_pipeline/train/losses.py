"""What training makes small, and the score that a log shows: by task."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..concordance import concordance
from ..config import TrainConfig
from ..types import Float64, Int64
from .survival import cox_loss

TaskLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B, C), targets (B, K) -> ()

# Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019: weight of cross-entropy, of
# reverse cross-entropy, and minus the logarithm that stands for log 0.
SYMMETRIC = (0.1, 1.0, 4.0)


def task_loss(config: TrainConfig, training_targets: Tensor, outputs: int) -> TaskLoss:
    """The loss of ``config.task``, a mean over bags; survival: over the events among them.

    ``training_targets`` (n, K) decide the weights of classes. Regression is given targets in standard units.
    """
    if config.task == "survival":
        return lambda logits, targets: cox_loss(logits[:, 0], targets[:, 0], targets[:, 1])
    if config.task == "regression":
        return F.mse_loss
    weights = class_weights(config, training_targets, outputs) if config.loss == "weighted" else None
    if config.task == "multilabel":
        return lambda logits, targets: F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=None if weights is None else weights.to(logits)
        )
    if config.loss == "symmetric":
        return lambda logits, targets: symmetric_cross_entropy(logits, targets[:, 0].long())

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        labels = targets[:, 0].long()
        losses = F.cross_entropy(logits, labels, reduction="none")  # (B,)
        return losses.mean() if weights is None else (losses * weights.to(logits)[labels]).mean()

    return cross_entropy


def class_weights(config: TrainConfig, targets: Tensor, outputs: int) -> Tensor:
    """(C,) by inverse frequency: n / (C n_c), so that a bag weighs 1 on average; multilabel: negatives a positive."""
    if config.task == "multilabel":
        positives = targets.sum(0)  # (C,)
        return (len(targets) - positives).clamp(min=1) / positives.clamp(min=1)
    counts = torch.bincount(targets[:, 0].long(), minlength=outputs)
    return len(targets) / (outputs * counts.clamp(min=1).float())


def symmetric_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """alpha CE + beta RCE, a mean over bags: (B, C), (B,) -> (). RCE = A (1 - p_label)."""
    alpha, beta, log_zero = SYMMETRIC
    log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]  # (B,)
    return (-alpha * log_p + beta * log_zero * (1 - log_p.exp())).mean()


def measure(task: str) -> str:
    """The name of the score that the log of training shows beside the loss."""
    return {"survival": "val_concordance", "regression": "val_r2"}.get(task, "val_auroc")


def score(task: str, logits: Float64, targets: Float64) -> float:
    """The score of n validation bags: logits (n, C), targets (n, K). NaN where it is undefined."""
    if not np.isfinite(logits).all():
        return math.nan
    if task == "survival":
        return concordance(targets[:, 0], targets[:, 1] > 0, logits[:, 0])
    if task == "regression":
        spread = float(((targets - targets.mean()) ** 2).sum())
        return 1 - float(((targets - logits) ** 2).sum()) / spread if spread else math.nan
    if task == "multilabel":
        columns = zip(targets.T.astype(np.int64), logits.T, strict=True)
        return float(np.mean([macro_auroc(truth, np.stack([-z, z], axis=1)) for truth, z in columns]))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return macro_auroc(targets[:, 0].astype(np.int64), shifted / shifted.sum(axis=1, keepdims=True))


def macro_auroc(labels: Int64, probabilities: Float64) -> float:
    """Area under the ROC curve of the last of two classes; of more, the mean of one against the rest.

    ``labels`` (N,) class indices, ``probabilities`` (N, C). NaN where a class is missing from ``labels`` or a
    probability is no number.
    """
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    if len(set(labels.tolist())) < classes or not np.isfinite(probabilities).all():
        return math.nan
    ranked = range(1, 2) if classes == 2 else range(classes)
    return float(np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in ranked]))
