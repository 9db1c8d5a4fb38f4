"""Train one fold, in any process: read the bags, train, predict the validation and test bags, save."""

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
from .losses import score_name
from .threshold import best_threshold


def train_fold(job: FoldJob, folder: Path, key: str) -> int:
    """Train one fold and write log.csv, predictions.csv, model.safetensors and, last, model.json into ``folder``.

    Parameters
    ----------
    job : FoldJob
    folder : Path
    key : str
        Content key, stored in model.json and in the state from which an interrupted fold resumes.

    Returns
    -------
    int
        Number of training bags.

    Raises
    ------
    ArtifactError
        Where a bag cannot be used or differs in kind from the others.
    ConfigError
        Where labels cannot be used, or no epoch has a finite validation loss.
    """
    discard(folder / "tensorboard")
    config = job.config
    plan = BagPlan.of(job)
    device = pick_device(config.device)
    with reproducible(device, config.threads, "train", job.seed, job.split.fold):
        reader = BagReader(job.bags)
        data = FoldData(reader, plan.train, plan.val, plan.standard, job.seed, job.split.fold, plan.units)
        model = models.build(job.choice.name, reader.kind.dim, len(job.classes), **job.choice.options)
        fitted = fit(model, data, config, len(job.classes), device, folder, key)
        model.load_state_dict(fitted.weights)
        logits_of_bag = predict_bags(model, data, plan.val + plan.test, device)
    (folder / CARD).unlink(missing_ok=True)  # if the process is killed below, the fold is not current
    write_text(folder / "log.csv", log_table(fitted, config.task))
    write_text(folder / "predictions.csv", predictions_table(job, plan, logits_of_bag))
    val_logits = np.stack([logits_of_bag[name] for name in plan.val])
    val_targets = [plan.targets[name] for name in plan.val]
    calibration = calibrate(config.task, val_logits, val_targets, plan.patients(plan.val))
    save_model(folder, model, _card(job, plan, reader, fitted, calibration, val_logits), key)
    discard(folder / STATE)
    return len(plan.train)


def predict_bags(model: nn.Module, data: FoldData, names: Sequence[str], device: torch.device) -> dict[str, Float64]:
    """Name -> logits (C,) of its whole bag. Leaves ``model`` on ``device`` and in eval mode."""
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
    return csv_text(("epoch", "train_loss", "val_loss", score_name(task), "lr"), lines)


def predictions_table(job: FoldJob, plan: BagPlan, logits_of_bag: Mapping[str, Float64]) -> str:
    """The text of a fold's predictions.csv: one row per validation and test bag, its slide ids joined by ``;``.

    ``logits_of_bag``: name -> logits (C,). Probabilities are not calibrated; a regression's values have its label's
    unit, and a survival risk is the log hazard.
    """
    follow_up = ["time", "event"] if job.config.task == "survival" else []
    header = ["slide_id", "patient_id", "label", *follow_up, "part", *outcome_columns(job.config.task, job.classes)]
    lines: list[list[object]] = []
    for part, names in (("val", plan.val), ("test", plan.test)):
        for name in names:
            row = plan.rows[plan.units[name][0]]
            predicted = outcome(job.config.task, logits_of_bag[name], scale=plan.scale)
            time_event = [format_number(row.time), int(bool(row.event))] if follow_up else []
            ids = [";".join(plan.units[name]), row.patient_id, row.label or ""]
            lines.append([*ids, *time_event, part, *map(format_number, predicted)])
    return csv_text(header, lines)


def _card(
    job: FoldJob,
    plan: BagPlan,
    reader: BagReader,
    fitted: Fitted,
    calibration: Calibration,
    val_logits: Float64,
) -> ModelCard:
    """The model's card; for two classes with a threshold chosen from ``val_logits`` (n, 2)."""
    best = fitted.log[fitted.best_epoch - 1]
    kind, config, split = reader.kind, job.config, job.split
    threshold = None
    if config.task == "classification" and len(job.classes) == 2:
        positive = [plan.targets[name] == (1.0,) for name in plan.val]
        threshold = best_threshold(positive, outcome(config.task, val_logits)[:, 1].tolist())
    return ModelCard(
        model=job.choice.name,
        options=dict(job.choice.options),
        classes=job.classes,
        encoder=kind.encoder,
        encoder_options=dict(job.encoder_options),
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
            "seed": job.seed,
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
            score_name(config.task): None if math.isnan(best.val_score) else best.val_score,
        },
    )
