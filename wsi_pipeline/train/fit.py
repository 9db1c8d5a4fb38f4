"""Train one fold with Lightning, without its console output and without lasting changes to the process."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import torchvision_guard  # noqa: F401
from ..aggregate.inference import cpu_threads
from ..config import TrainConfig
from ..errors import ConfigError
from ..rng import seed_from
from .data import Bags, FoldData, Sampling
from .fold_job import STATE
from .losses import task_loss
from .module import EpochLog, FoldModule
from .resume import SaveState, state_of

# isort: split
import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger, TensorBoardLogger

_SILENCED_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_SILENCED_WARNINGS = (
    r"(GPU|MPS|TPU) available but not used",
    r"The `srun` command is available",  # a single process is intended
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
)


@dataclass(frozen=True)
class Fitted:
    """The result of training: the weights of the selected epoch and the log of all epochs.

    The selected epoch has the lowest validation loss; with ``keep: last`` it is the last one with a finite loss.
    """

    weights: dict[str, Tensor]
    best_epoch: int  # from 1
    log: tuple[EpochLog, ...]


class _Data(L.LightningDataModule):
    """The bags of a fold, in a new order each epoch."""

    def __init__(self, data: FoldData, config: TrainConfig) -> None:
        super().__init__()
        self._data = data
        self._config = config

    def train_dataloader(self) -> Bags:
        epoch = self.trainer.current_epoch if self.trainer else 0
        config = self._config
        return self._data.training(
            epoch,
            balanced=config.balanced and config.task == "classification",
            sampling=Sampling(config.max_patches, config.feature_noise, config.feature_drop),
            size=config.risk_set if config.task == "survival" else 1,
        )

    def val_dataloader(self) -> Bags:
        return self._data.validation()


@contextlib.contextmanager
def reproducible(device: torch.device, threads: int, *seed_parts: object) -> Iterator[None]:
    """A context in which torch is seeded from ``seed_parts`` and uses ``threads`` CPU threads.

    On leaving it, torch's random state, thread count, determinism settings and cuDNN benchmark flag are restored.
    """
    accelerators = [device] if device.type == "cuda" else []
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with torch.random.fork_rng(devices=accelerators), cpu_threads(threads):
        torch.manual_seed(seed_from(*seed_parts))
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
            if workspace is not None:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


def fit(
    model: nn.Module,
    data: FoldData,
    config: TrainConfig,
    outputs: int,
    device: torch.device,
    folder: Path,
    key: str,
) -> Fitted:
    """Train ``model`` in place, with early stopping on the validation loss. Call it inside ``reproducible``.

    Parameters
    ----------
    model : nn.Module
        Afterwards it holds the weights of the last epoch, not of the selected one.
    data : FoldData
        Training and validation bags; regression targets are standardised.
    config : TrainConfig
    outputs : int
        Number of logits of the model.
    device : torch.device
    folder : Path
        Receives the state from which an interrupted fold resumes, and TensorBoard logs where configured.
    key : str
        Content key of the fold; a state that was saved with another key is not resumed.

    Returns
    -------
    Fitted

    Raises
    ------
    ConfigError
        Where no epoch has a finite validation loss, or TensorBoard is configured but not installed.
    """
    targets = torch.tensor([data.targets[name] for name in data.train], dtype=torch.float32)  # (n, K)
    loss = task_loss(config, targets, outputs)
    module = FoldModule(model, config, loss, ("epoch", data.seed, data.fold))
    state = folder / STATE
    with _quiet():
        trainer = _trainer(config, device, folder, SaveState(state, key, config.state_every_s))
        try:
            trainer.fit(module, datamodule=_Data(data, config), ckpt_path=state_of(state, key), weights_only=True)
        except SystemExit as stop:  # Lightning converts Ctrl-C to it
            raise KeyboardInterrupt from stop
    if module.best is None:
        raise ConfigError("no epoch of training has a finite validation loss; set a lower train.lr")
    return Fitted(module.best, module.best_epoch, tuple(module.log_lines))


def _trainer(config: TrainConfig, device: torch.device, folder: Path, state: SaveState) -> L.Trainer:
    return L.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=config.epochs,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm or None,
        deterministic=True if device.type == "cpu" else "warn",  # some CUDA kernels have no deterministic version
        callbacks=[state] if config.keep == "last" else [EarlyStopping("val_loss", patience=config.patience), state],
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=_tensorboard(folder) if config.tensorboard else False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,  # with ``state`` among the callbacks, Lightning adds no checkpoint of its own
        default_root_dir=folder,
        plugins=[LightningEnvironment()],  # a single process, also inside a cluster's batch job
    )


def _tensorboard(folder: Path) -> Logger:
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "train.tensorboard needs the package tensorboard; pip install 'wsi-pipeline[tensorboard]', or leave it off"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's remarks on devices and loggers, but not warnings about the training itself."""
    loggers = [logging.getLogger(name) for name in _SILENCED_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _SILENCED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
