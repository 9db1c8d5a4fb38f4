"""Save and resume the state of a fold's training: one file beside its results, written after an epoch."""

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
    """A callback that saves the training state after an epoch, at most every ``every_s`` seconds."""

    def __init__(self, path: Path, key: str, every_s: float) -> None:
        self._path, self._key, self._every_s = path, key, every_s
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        """Save the state; the epoch is trained and validated, and early stopping has evaluated it."""
        if time.monotonic() - self._last >= self._every_s:
            with atomic_path(self._path) as beside:
                trainer.save_checkpoint(beside)
            self._last = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Store the key: with other settings or other bags, training starts from the beginning."""
        checkpoint["key"] = self._key


def state_of(path: Path, key: str) -> Path | None:
    """``path`` where it holds the training state of a fold with this key, else None.

    A state with another key is deleted; a damaged one is deleted with a warning in the log.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["key"]
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        _log.warning("%s cannot be read (%s); training of the fold starts again", path, error.__class__.__name__)
        found = None
    if found == key:
        return path
    discard(path)
    return None
