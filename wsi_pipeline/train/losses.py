"""Loss functions of training and the validation scores in its log, by task."""

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

# Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019: the weights of cross-entropy
# and of reverse cross-entropy, and the negative of the value that replaces log 0.
SYMMETRIC = (0.1, 1.0, 4.0)


def task_loss(config: TrainConfig, training_targets: Tensor, outputs: int) -> TaskLoss:
    """The loss function of ``config.task``.

    Parameters
    ----------
    config : TrainConfig
        ``task`` and ``loss`` are used.
    training_targets : tensor (n, K)
        Targets of all training bags, for the class weights of ``loss: weighted``.
    outputs : int
        Number C of logits.

    Returns
    -------
    callable
        (logits (B, C), targets (B, K)) -> scalar tensor: the mean over the bags; for survival over the events among
        them. Regression (mean squared error) expects standardised targets.
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
    """Class weights (C,) by inverse frequency, from targets (n, K).

    Classification: n / (C n_c), so that the mean weight of a bag is 1. Multilabel: negatives per positive.
    """
    if config.task == "multilabel":
        positives = targets.sum(0)  # (C,)
        return (len(targets) - positives).clamp(min=1) / positives.clamp(min=1)
    counts = torch.bincount(targets[:, 0].long(), minlength=outputs)
    return len(targets) / (outputs * counts.clamp(min=1).float())


def symmetric_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """alpha CE + beta RCE with RCE = A (1 - p_label), mean over bags: logits (B, C), labels (B,) -> scalar.

    Wang et al., ICCV 2019; alpha, beta and A are ``SYMMETRIC``.
    """
    alpha, beta, log_zero = SYMMETRIC
    log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]  # (B,)
    return (-alpha * log_p + beta * log_zero * (1 - log_p.exp())).mean()


def score_name(task: str) -> str:
    """Name of the validation score of ``task`` in the training log."""
    return {"survival": "val_concordance", "regression": "val_r2"}.get(task, "val_auroc")


def score(task: str, logits: Float64, targets: Float64) -> float:
    """The validation score of n bags, as named by ``score_name``.

    Parameters
    ----------
    task : str
    logits : array (n, C)
    targets : array (n, K)

    Returns
    -------
    float
        Concordance (survival), R² (regression), AUROC (classification), or the mean AUROC over labels (multilabel).
        NaN where it is undefined or a logit is not finite.
    """
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
    """Area under the ROC curve of the last of two classes; for more classes the mean of one against the rest.

    Parameters
    ----------
    labels : array (N,) of class indices
    probabilities : array (N, C)

    Returns
    -------
    float
        NaN where a class is missing from ``labels`` or a probability is not finite.
    """
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    if len(set(labels.tolist())) < classes or not np.isfinite(probabilities).all():
        return math.nan
    ranked = range(1, 2) if classes == 2 else range(classes)
    return float(np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in ranked]))
