"""A trained model on disk: ``model.safetensors`` and, written last, ``model.json`` that says what it is.

A folder without ``model.json`` holds no model, so half-written ones are never met.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from ..artifacts import SCHEMA, Provenance, atomic_path, write_text
from ..errors import ArtifactError, ConfigError, UnknownNameError
from ..types import FeatureBag
from . import models

CARD = "model.json"
WEIGHTS = "model.safetensors"
MPP_TOLERANCE = 0.01  # relative; scans of one protocol differ by about that much


Task = Literal["classification", "multilabel", "regression", "survival"]


@dataclass(frozen=True)
class ModelCard:
    """What a trained model is, and which bags it can read. The last class is the positive one of two."""

    model: str  # registered name
    options: dict[str, Any]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]  # in the order of the logits
    encoder: str
    encoder_options: dict[str, Any]
    weights_digest: str  # of the encoder
    dim: Annotated[int, Field(ge=1)]  # features a patch
    target_mpp: Annotated[float, Field(gt=0)]  # µm per pixel of the patches
    side_px: Annotated[int, Field(ge=1)]
    threshold: float | None  # on the positive class's probability, from validation; None for more than two classes
    trained: dict[str, Any]  # fold, seed, patients held out and the like; anything JSON can hold
    weights_sha256: str = ""  # of model.safetensors; filled in by save_model
    task: Task = "classification"
    bag: Literal["slide", "patient"] = "slide"  # what one bag of its training was
    scale: tuple[float, float] = (0.0, 1.0)  # regression: value = scale[0] + scale[1] * output
    temperature: Annotated[float, Field(gt=0)] | None = None  # what logits are divided by, from validation
    calibration: tuple[float, ...] = ()  # nonconformity of validation patients, for prediction sets


def save_model(folder: Path, model: nn.Module, card: ModelCard, key: str) -> None:
    """Write weights and card into ``folder``, made where absent. Same model, card and key: same bytes.

    The old card goes first and the new one comes last. Raises ``StorageError`` where the disk is full or forbidden.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data = safetensors.torch.save(state)
    card = replace(card, weights_sha256=hashlib.sha256(data).hexdigest())
    provenance = asdict(Provenance.of(key, "train"))
    text = json.dumps({**provenance, **asdict(card)}, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(folder / WEIGHTS) as beside:
        (folder / CARD).unlink(missing_ok=True)
        beside.write_bytes(data)
    write_text(folder / CARD, text + "\n")


def load_card(folder: str | os.PathLike[str]) -> ModelCard:
    """The card of the model in ``folder``; raises ``ArtifactError`` where there is none or it cannot be used."""
    path = Path(folder) / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); give a folder that training finished"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON ({error}); train again, or copy the model again") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise ArtifactError(
            f"{path} has schema {found!r}, this version reads {SCHEMA}; use the version that made it, or train again"
        )
    known = {field.name for field in fields(ModelCard)}
    card = {name: value for name, value in content.items() if name in known}
    try:
        return TypeAdapter(ModelCard).validate_json(json.dumps(card), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}; train again, or copy the model again") from error


def load_model(folder: str | os.PathLike[str], device: torch.device | str) -> tuple[nn.Module, ModelCard]:
    """The model in ``folder``, in eval mode on ``device``, and its card. Draws nothing from the caller's generator.

    Raises ``ArtifactError`` where the weights are missing, are not those the card was written for, or do not fit.
    """
    folder = Path(folder)
    card = load_card(folder)
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); copy the whole model folder, or run `wsi train` again"
        ) from error
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise ArtifactError(
            f"{path} is damaged or belongs to another {CARD} (sha256 differs); copy the model again, or run `wsi train`"
        )
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file ({error}); train again") from error
    with torch.random.fork_rng(devices=[]):
        try:
            model = models.build(card.model, card.dim, len(card.classes), **card.options)
        except (ConfigError, UnknownNameError) as error:
            raise ArtifactError(f"{folder / CARD}: {error}") from error
    if misfit := _misfit(model.state_dict(), state):
        raise ArtifactError(f"{path} does not fit model {card.model!r}: {misfit}; use the version that made it")
    model.load_state_dict(state)
    return model.to(device).eval(), card


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """The first parameter that is missing, unknown or of another shape, in words; empty where all fit."""
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            return f"it lacks {name}"
        if name not in wanted:
            return f"the model has no {name}"
        if wanted[name].shape != given[name].shape:
            return f"{name} is {tuple(given[name].shape)}, the model's is {tuple(wanted[name].shape)}"
    return ""


def model_folders(path: str | os.PathLike[str]) -> list[Path]:
    """``path`` itself where it holds a model, else every folder below that does, sorted: one model or an ensemble."""
    path = Path(path)
    if (path / CARD).is_file():
        return [path]
    below = {found.parent for found in path.rglob(CARD)}
    shown = sorted(p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts))
    if not shown:
        raise ArtifactError(f"no {CARD} in {path} or below; give the folder of a trained model, or train first")
    return shown


def check_fits(card: ModelCard, bag: FeatureBag, where: str) -> None:
    """Raise ``ArtifactError`` unless ``bag`` holds what the model was trained on; ``where`` names the bag.

    Compared are encoder, its weights, feature length, mpp (to 1 %) and patch side.
    """
    dim, grid = bag.features.shape[1], bag.grid
    differences = []
    if bag.encoder != card.encoder:
        differences.append((f"encoder {bag.encoder!r}, not {card.encoder!r}", f"embed.encoder={card.encoder}"))
    elif bag.weights_digest != card.weights_digest:
        digests = f"{_short(bag.weights_digest)}, not {_short(card.weights_digest)}"
        differences.append((f"encoder weights {digests}", "the encoder weights of training"))
    elif dim != card.dim:
        differences.append((f"{dim} features a patch, not {card.dim}", "the encoder options of training"))
    if abs(grid.target_mpp / card.target_mpp - 1) > MPP_TOLERANCE:
        differences.append((f"{grid.target_mpp:g} µm/px, not {card.target_mpp:g}", f"tile.mpp={card.target_mpp:g}"))
    if grid.side_px != card.side_px:
        differences.append((f"patches of {grid.side_px} px, not {card.side_px}", f"tile.side_px={card.side_px}"))
    if differences:
        found, remedies = ("; ".join(parts) for parts in zip(*differences, strict=True))
        raise ArtifactError(f"{where} does not fit the model: it has {found}; make the features again with {remedies}")


def _short(digest: str) -> str:
    return digest[:12] or "unknown"
