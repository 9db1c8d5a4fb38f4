"""What one fold does, in whichever process: read bags, train, predict what it has not seen, save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..aggregate import models
from ..aggregate.checkpoint import CARD, ModelCard, save_model
from ..aggregate.inference import bag_output, logits_of
from ..artifacts import discard, write_text
from ..csvtable import csv_text, format_number
from ..device import pick_device
from ..outcome import outcome, outcome_columns
from ..types import Float64
from .bag_plan import BagPlan
from .data import BagReader, FoldData
from .fit import Fitted, fit, reproducible
from .fit_calibration import Calibration, calibrate
from .fold_job import STATE, FoldJob
from .losses import measure
from .threshold import best_threshold


def train_fold(task: FoldJob, folder: Path, key: str) -> int:
    """Writes log.csv, predictions.csv, model.safetensors and, last, model.json into ``folder``.

    Returns how many training bags there were.
    """
    discard(folder / "tensorboard")
    config = task.config
    plan = BagPlan.of(task)
    device = pick_device(config.device)
    with reproducible(device, config.threads, "train", task.seed, task.split.fold):
        reader = BagReader(task.bags)
        data = FoldData(reader, plan.train, plan.val, plan.standard, task.seed, task.split.fold, plan.units)
        model = models.build(task.choice.name, reader.kind.dim, len(task.classes), **task.choice.options)
        fitted = fit(model, data, config, len(task.classes), device, folder, key)
        model.load_state_dict(fitted.weights)
        unseen = predict_bags(model, data, plan.val + plan.test, device)
    (folder / CARD).unlink(missing_ok=True)  # killed below, the fold is not current
    write_text(folder / "log.csv", log_table(fitted, config.task))
    write_text(folder / "predictions.csv", predictions_table(task, plan, unseen))
    logits = np.stack([unseen[name] for name in plan.val])
    calibration = calibrate(config.task, logits, [plan.targets[name] for name in plan.val], plan.patients(plan.val))
    save_model(folder, model, _card(task, plan, reader, fitted, calibration, logits), key)
    discard(folder / STATE)
    return len(plan.train)


def predict_bags(model: nn.Module, data: FoldData, names: Sequence[str], device: torch.device) -> dict[str, Float64]:
    """Name -> logits (C,) of its whole bag."""
    model.to(device).eval()
    return {name: logits_of(bag_output(model, data.bags(name), device)) for name in names}


def log_table(fitted: Fitted, task: str) -> str:
    """The text of log.csv."""
    lines = [
        (
            line.epoch,
            format_number(line.train_loss),
            format_number(line.val_loss),
            format_number(line.val_score),
            f"{line.lr:.6g}",
        )
        for line in fitted.log
    ]
    return csv_text(("epoch", "train_loss", "val_loss", measure(task), "lr"), lines)


def predictions_table(task: FoldJob, plan: BagPlan, unseen: Mapping[str, Float64]) -> str:
    """The text of a fold's predictions.csv: its validation and test bags, slides of one bag joined by ``;``."""
    followed = ["time", "event"] if task.config.task == "survival" else []
    header = ["slide_id", "patient_id", "label", *followed, "part", *outcome_columns(task.config.task, task.classes)]
    lines: list[list[object]] = []
    for part, names in (("val", plan.val), ("test", plan.test)):
        for name in names:
            row = plan.rows[plan.units[name][0]]
            said = outcome(task.config.task, unseen[name], scale=plan.scale)
            outcomes = [format_number(row.time), int(bool(row.event))] if followed else []
            who = [";".join(plan.units[name]), row.patient_id, row.label or ""]
            lines.append([*who, *outcomes, part, *map(format_number, said)])
    return csv_text(header, lines)


def _card(
    task: FoldJob,
    plan: BagPlan,
    reader: BagReader,
    fitted: Fitted,
    calibration: Calibration,
    val_logits: Float64,
) -> ModelCard:
    best = fitted.log[fitted.best_epoch - 1]
    kind, config, split = reader.kind, task.config, task.split
    threshold = None
    if config.task == "classification" and len(task.classes) == 2:
        positive = [plan.targets[name] == (1.0,) for name in plan.val]
        threshold = best_threshold(positive, outcome(config.task, val_logits)[:, 1].tolist())
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
        task=config.task,
        bag=config.bag,
        scale=plan.scale,
        temperature=calibration.temperature,
        calibration=calibration.nonconformity,
        trained={
            "seed": task.seed,
            "fold": split.fold,
            "recipe": config.recipe,
            "seen_patients": sorted({plan.rows[s].patient_id for s in split.train + split.val}),
            "seen_slides": sorted(split.train + split.val),
            "val_patients": sorted({plan.rows[s].patient_id for s in split.val}),
            "train_slides": len(split.train),
            "val_slides": len(split.val),
            "epochs": len(fitted.log),
            "best_epoch": fitted.best_epoch,
            "val_loss": best.val_loss,
            measure(config.task): None if math.isnan(best.val_score) else best.val_score,
        },
    )
