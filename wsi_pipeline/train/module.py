"""One fold's training as a Lightning module: loss, optimiser, schedule, and what is logged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TrainConfig
from ..embed import torchvision_guard  # noqa: F401
from ..types import Float64, Int64
from .data import LabelledBag
from .inference import probabilities

# isort: split
import lightning as L


@dataclass(frozen=True)
class EpochLog:
    """One line of log.csv. ``val_auroc`` is NaN where validation lacks a class."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float
    val_auroc: float
    lr: float


class FoldModule(L.LightningModule):
    """Trains ``model`` by cross-entropy, one bag at a time, and remembers the weights of the best validation loss.

    The optimiser steps by the gradients' sum over ``accumulate`` bags, divided by ``accumulate``, also at an epoch's
    end where they are fewer.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.log_lines: list[EpochLog] = []
        self.best: dict[str, Tensor] | None = None  # None: no epoch has had a finite loss
        self.best_epoch = 0
        self._best_loss = math.inf
        self._lr = math.nan
        self._config = config
        self._train_losses: list[Tensor] = []
        self._val_outputs: list[tuple[float, Float64, int]] = []  # loss, probabilities (C,), label

    def on_train_epoch_start(self) -> None:
        """Notes the learning rate: Lightning sets the next one before it validates."""
        optimizer: Any = self.optimizers()
        self._lr = float(optimizer.param_groups[0]["lr"])

    def training_step(self, bag: LabelledBag, _: int) -> Tensor:
        """Cross-entropy of one bag."""
        loss = self._loss(bag)[0]
        self._train_losses.append(loss.detach())
        return loss

    def validation_step(self, bag: LabelledBag, _: int) -> None:
        """Keeps loss and probabilities of one whole bag."""
        loss, logits = self._loss(bag)
        self._val_outputs.append((float(loss), probabilities(logits), bag.label))

    def on_validation_epoch_end(self) -> None:
        """Logs what early stopping looks at."""
        losses, rows, labels = zip(*self._val_outputs, strict=True)
        self._val_outputs.clear()
        val_loss = float(np.mean(losses))
        auroc = macro_auroc(np.asarray(labels, np.int64), np.stack(rows))
        train_loss = float(torch.stack(self._train_losses).double().mean()) if self._train_losses else math.nan
        self._train_losses.clear()
        line = EpochLog(self.current_epoch + 1, train_loss, val_loss, auroc, self._lr)
        self.log_lines.append(line)
        self.log_dict({k: v for k, v in vars(line).items() if k != "epoch"})
        if val_loss < self._best_loss:
            self._best_loss, self.best_epoch = val_loss, line.epoch
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter, ICLR 2019); the learning rate changes once an epoch."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self._config.lr, weight_decay=self._config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: lr_factor(epoch, self._config.warmup_epochs, self._config.epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def _loss(self, bag: LabelledBag) -> tuple[Tensor, Tensor]:
        logits = self.model(bag.features.float(), bag.xy).logits.float()  # (C,)
        target = torch.tensor([bag.label], device=logits.device)
        return F.cross_entropy(logits[None], target), logits


def lr_factor(epoch: int, warmup: int, epochs: int) -> float:
    """Share of the learning rate in ``epoch`` (from 0): a linear rise, then half a cosine that ends above 0."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup))) / 2


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
