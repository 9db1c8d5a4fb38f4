"""What one fold does, in whichever process: read bags, train, predict what it has not seen, save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..aggregate import models
from ..aggregate.checkpoint import CARD, ModelCard, save_model
from ..embed.device import pick_device
from ..files import discard, write_text
from ..types import Float64, SlideRow
from .data import BagReader, FoldData
from .fit import Fitted, fit, reproducible
from .inference import bag_output, probabilities
from .splits import Split
from .table import number, table
from .task import FoldTask
from .threshold import best_threshold


def train_fold(task: FoldTask, folder: Path, key: str) -> int:
    """Writes log.csv, predictions.csv, model.safetensors and, last, model.json into ``folder``.

    Returns how many training bags there were.
    """
    discard(folder / "tensorboard")
    rows = {slide.slide_id: slide for slide in task.slides}
    labels = {slide_id: task.classes.index(str(row.label)) for slide_id, row in rows.items()}
    split = task.split
    device = pick_device(task.config.device)
    with reproducible(device, task.config.threads, "train", task.seed, split.fold):
        reader = BagReader(task.bags)
        data = FoldData(reader, split.train, split.val, labels, task.seed, split.fold)
        model = models.build(task.choice.name, reader.kind.dim, len(task.classes), **task.choice.options)
        fitted = fit(model, data, task.config, device, folder)
        model.load_state_dict(fitted.weights)
        unseen = predict_bags(model, reader, split.val + split.test, device)
    (folder / CARD).unlink(missing_ok=True)  # killed below, the fold is not current
    write_text(folder / "log.csv", log_table(fitted))
    write_text(folder / "predictions.csv", predictions_table(task.classes, split, rows, unseen))
    threshold = None
    if len(task.classes) == 2:
        threshold = best_threshold([labels[s] == 1 for s in split.val], [float(unseen[s][1]) for s in split.val])
    save_model(folder, model, _card(task, reader, fitted, threshold), key)
    return len(split.train)


def predict_bags(
    model: nn.Module, reader: BagReader, slide_ids: Sequence[str], device: torch.device
) -> dict[str, Float64]:
    """slide_id -> probabilities (C,) of its whole bag."""
    model.to(device).eval()
    return {s: probabilities(bag_output(model, reader(s), device).logits) for s in slide_ids}


def log_table(fitted: Fitted) -> str:
    """The text of log.csv."""
    lines = [
        (line.epoch, number(line.train_loss), number(line.val_loss), number(line.val_auroc), f"{line.lr:.6g}")
        for line in fitted.log
    ]
    return table(("epoch", "train_loss", "val_loss", "val_auroc", "lr"), lines)


def predictions_table(
    classes: Sequence[str], split: Split, rows: Mapping[str, SlideRow], unseen: Mapping[str, Float64]
) -> str:
    """The text of a fold's predictions.csv: its validation and test slides."""
    header = ["slide_id", "patient_id", "label", "part", *(f"prob_{c}" for c in classes)]
    lines = [
        [slide_id, rows[slide_id].patient_id, rows[slide_id].label, part, *map(number, unseen[slide_id])]
        for part, slide_ids in (("val", split.val), ("test", split.test))
        for slide_id in slide_ids
    ]
    return table(header, lines)


def _card(task: FoldTask, reader: BagReader, fitted: Fitted, threshold: float | None) -> ModelCard:
    patients = {slide.slide_id: slide.patient_id for slide in task.slides}
    best = fitted.log[fitted.best_epoch - 1]
    kind = reader.kind
    return ModelCard(
        model=task.choice.name,
        options=dict(task.choice.options),
        classes=task.classes,
        encoder=kind.encoder,
        encoder_options=dict(task.encoder_options),
        weights_digest=kind.weights_digest,
        dim=kind.dim,
        target_mpp=kind.target_mpp,
        side_px=kind.side_px,
        threshold=threshold,
        trained={
            "seed": task.seed,
            "fold": task.split.fold,
            "seen_patients": sorted({patients[s] for s in task.split.train + task.split.val}),
            "seen_slides": sorted(task.split.train + task.split.val),
            "val_patients": sorted({patients[s] for s in task.split.val}),
            "train_slides": len(task.split.train),
            "val_slides": len(task.split.val),
            "epochs": len(fitted.log),
            "best_epoch": fitted.best_epoch,
            "val_loss": best.val_loss,
            "val_auroc": None if math.isnan(best.val_auroc) else best.val_auroc,
        },
    )
