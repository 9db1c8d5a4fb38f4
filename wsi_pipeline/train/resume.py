"""A fold that was stopped goes on where it was: its state after an epoch, in one file beside its results."""

from __future__ import annotations

import logging
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from .. import torchvision_guard  # noqa: F401
from ..artifacts import atomic_path, discard

# isort: split
import lightning as L
from lightning.pytorch.callbacks import Checkpoint

_log = logging.getLogger("wsi_pipeline")


class SaveState(Checkpoint):
    """Writes the state after an epoch, at most every ``every_s`` seconds."""

    def __init__(self, path: Path, key: str, every_s: float) -> None:
        self._path, self._key, self._every_s = path, key, every_s
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        """The epoch is trained and validated, and early stopping has looked at it."""
        if time.monotonic() - self._last >= self._every_s:
            with atomic_path(self._path) as beside:
                trainer.save_checkpoint(beside)
            self._last = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """The state belongs to one key: other settings or other bags start anew."""
        checkpoint["key"] = self._key


def state_of(path: Path, key: str) -> Path | None:
    """``path`` where it holds the state of a fold with this key; any other is discarded, and a damaged one is said."""
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["key"]
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        _log.warning("%s cannot be read (%s); the fold is trained from its start", path, error.__class__.__name__)
        found = None
    if found == key:
        return path
    discard(path)
    return None
