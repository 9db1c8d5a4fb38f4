"""Training of one fold as a Lightning module: loss, optimiser, schedule and logging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import torchvision_guard  # noqa: F401
from ..aggregate import OwnTraining, TrainingOutput
from ..config import TrainConfig
from ..rng import seed_from
from ..types import Float64
from .data import LabelledBag
from .losses import TaskLoss, score
from .optimizer import build_optimizer, lr_factor

# isort: split
import lightning as L

Group = tuple[LabelledBag, ...]


@dataclass(frozen=True)
class EpochLog:
    """One row of log.csv. ``val_score`` is NaN where it is undefined, as is AUROC where validation lacks a class."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float
    val_score: float  # see ``losses.score_name``
    lr: float


class FoldModule(L.LightningModule):
    """Trains ``model`` one bag at a time (survival: one risk set) and keeps the weights of the best or the last epoch.

    The optimiser steps by the sum of the gradients over ``accumulate`` bags, divided by ``accumulate``, also at the
    end of an epoch where fewer bags remain. The random draws of an epoch (dropout, pseudo-bags) depend only on
    ``seeds`` and the epoch, so that training that resumes after an interruption gives the same result.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, loss: TaskLoss, seeds: tuple[object, ...] = ()) -> None:
        super().__init__()
        self.model = model
        self.log_lines: list[EpochLog] = []
        self.best: dict[str, Tensor] | None = None  # None: no epoch so far has a finite loss
        self.best_epoch = 0
        self._best_loss = math.inf
        self._lr = math.nan
        self._config = config
        self._task_loss = loss
        self._seeds = seeds
        self._train_losses: list[Tensor] = []
        self._val_outputs: list[tuple[Tensor, Tensor]] = []  # logits (C,), target (K,)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch and set its learning rate; both depend on the epoch's number alone."""
        config, epoch = self._config, self.current_epoch
        torch.manual_seed(seed_from(*self._seeds, epoch))
        self._lr = config.lr * lr_factor(epoch, config.warmup_epochs, config.epochs, config.schedule)
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self._lr

    def training_step(self, group: Group, _: int) -> Tensor:
        """The task's loss on one group of bags, plus the model's own loss terms."""
        outputs = [self._training_output(bag) for bag in group]
        targets = torch.stack([bag.target for bag in group])  # (B, K)
        loss = torch.stack([output.extra.float() for output in outputs]).mean()
        for streams in zip(*(output.streams for output in outputs), strict=True):
            logits = torch.stack([logits.float() for _, logits in streams])  # (B, C)
            loss = loss + streams[0][0] * self._task_loss(logits, targets)
        self._train_losses.append(loss.detach())
        return loss

    def validation_step(self, group: Group, _: int) -> None:
        """Collect the logits of whole bags."""
        for bag in group:
            logits = self.model(bag.features.float(), bag.xy).logits
            self._val_outputs.append((logits.float().cpu(), bag.target.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log the epoch and keep its weights where it is the best so far."""
        logits, targets = (torch.stack(part) for part in zip(*self._val_outputs, strict=True))
        self._val_outputs.clear()
        val_loss = float(self._task_loss(logits, targets))
        train_loss = float(torch.stack(self._train_losses).double().mean()) if self._train_losses else math.nan
        self._train_losses.clear()
        val_score = score(self._config.task, _double(logits), _double(targets))
        line = EpochLog(self.current_epoch + 1, train_loss, val_loss, val_score, self._lr)
        self.log_lines.append(line)
        self.log_dict({k: v for k, v in vars(line).items() if k != "epoch"})
        if val_loss < self._best_loss or (self._config.keep == "last" and math.isfinite(val_loss)):
            self._best_loss, self.best_epoch = val_loss, line.epoch
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def configure_optimizers(self) -> Any:
        """The configured optimiser; the learning rate changes once per epoch."""
        return build_optimizer(self.model.parameters(), self._config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not save itself: the log and the best weights."""
        lines = [list(vars(line).values()) for line in self.log_lines]
        checkpoint["fold"] = {"log": lines, "best": self.best, "best_epoch": self.best_epoch, "loss": self._best_loss}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the log and the best weights."""
        fold = checkpoint["fold"]
        self.log_lines = [EpochLog(*line) for line in fold["log"]]
        self.best, self.best_epoch, self._best_loss = fold["best"], fold["best_epoch"], fold["loss"]

    def _training_output(self, bag: LabelledBag) -> TrainingOutput:
        features = bag.features.float()
        if not isinstance(self.model, OwnTraining):
            logits = self.model(features, bag.xy).logits
            return TrainingOutput(((1.0, logits),), logits.new_zeros(()))
        label = int(bag.target[0]) if self._config.task == "classification" else None
        return self.model.training_output(features, bag.xy, label)


def _double(values: Tensor) -> Float64:
    return np.asarray(values.double().numpy(), np.float64)
