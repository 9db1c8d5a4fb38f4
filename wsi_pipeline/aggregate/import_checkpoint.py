"""Models that others trained with the authors' own code, as models of ours: same features, same logits and attention.

The file is read as tensors and plain containers only. Of everything else that a pickle can name, numpy's numbers are
let in, because training loops save their best score beside the weights; nothing else is looked up, and none is run.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

from ..artifacts import content_key, file_digest, read_key, read_made_by
from ..errors import ArtifactError, ConfigError
from . import models
from .checkpoint import CARD, ModelCard, save_model
from .checkpoint_converters import FAMILIES, State, Translation, Unread

Task = Literal["classification", "multilabel"]

_NUMBERS = "?bBhHiIlLqQefdg"  # numpy's types of numbers, by their characters
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Features:
    """The features that the model was trained on, as bags say it."""

    encoder: str
    weights_digest: str
    target_mpp: float  # µm per pixel
    side_px: int
    encoder_options: Mapping[str, Any] = field(default_factory=dict)


def import_model(
    path: Path,
    family: str,
    features: Features,
    classes: Sequence[str],
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    task: Task | None = None,
    seen: Sequence[str] = (),
) -> tuple[ModelCard, Translation]:
    """Write the model in ``path`` into ``out`` as ``model.safetensors`` and ``model.json``; returns card and sizes.

    ``classes`` in the order of the authors' outputs. ``options``: what the file cannot say, where it is not the
    repository's default. ``task``: where it is not the authors' own. ``seen``: patients or slides it was trained on.
    Raises ``ArtifactError`` where the file is not that model or ``out`` holds another, ``ConfigError`` for a choice
    that does not fit it.
    """
    if family not in FAMILIES:
        raise ConfigError(f"--from {family}: known are {', '.join(sorted(FAMILIES))}")
    if not all(classes) or len(set(classes)) != len(classes):
        raise ConfigError(f"--classes {','.join(classes)}: give each class one name of its own")
    found = translate(read_weights(path), str(path), family, classes, options or {})
    task = task or ("multilabel" if found.sigmoid else "classification")
    if task == "classification" and len(classes) < 2:
        raise ConfigError(f"--classes {classes[0]}: classification needs two classes; or give --task multilabel")
    digest = file_digest(path)
    card = ModelCard(
        model=found.model,
        options={**found.options, **found.assumed},
        classes=tuple(classes),
        encoder=features.encoder,
        encoder_options=dict(features.encoder_options),
        weights_digest=features.weights_digest,
        dim=found.dim,
        target_mpp=features.target_mpp,
        side_px=features.side_px,
        threshold=0.5 if task == "classification" and len(classes) == 2 else None,  # the authors take the likelier
        trained={
            "imported": {"from": family, "file": path.name, "sha256": digest},
            "seen_patients": sorted(set(seen)),
            "seen_slides": sorted(set(seen)),
        },
        task=task,
    )
    key = content_key(stage="import-model", family=family, card=card)
    if (out / CARD).exists() and read_key(out / CARD) != key:
        raise ArtifactError(f"{out} holds another model; give another --out, or delete that folder first")
    save_model(out, _module(found, path), card, key)
    return card, found


def translate(
    state: Mapping[str, Tensor], where: str, family: str, classes: Sequence[str], options: Mapping[str, Any]
) -> Translation:
    """``state`` under our names, nothing of it left over; ``where`` names the file.

    Raises ``ArtifactError`` where a tensor is missing, unknown or of an impossible shape, or where the file does not
    have as many outputs as there are classes.
    """
    left = Unread(state, where, family)
    found = FAMILIES[family](left, len(classes), options)
    left.done()
    if found.outputs != len(classes):
        raise ArtifactError(
            f"{where} has {found.outputs} outputs, but --classes names {len(classes)} ({', '.join(classes)}); "
            f"name one class an output, in the order of the authors' labels"
        )
    return found


def read_weights(path: Path) -> State:
    """Name -> float32 tensor of a file that ``torch.save`` wrote; wrappers and DataParallel's marks are taken off.

    Nested dictionaries give names with dots. Raises ``ArtifactError`` where the file cannot be read as weights alone.
    """
    content = _read(path)
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    state: State = {}
    for full, value in _flat(content, path, ""):
        name = ".".join(part for part in full.split(".") if part != "module").removeprefix("model.")
        if not isinstance(value, Tensor):
            raise ArtifactError(f"{path} is no state_dict: {full} is a {type(value).__name__}; save the weights alone")
        if name in state:
            raise ArtifactError(f"{path} holds {name} twice, with and without a prefix; save one model alone")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ArtifactError(f"{path}: {full} holds values that are no numbers; take another checkpoint")
        state[name] = value.detach().to(torch.float32)
    if not state:
        raise ArtifactError(f"{path} holds no weights; give the file that torch.save(model.state_dict(), …) wrote")
    return state


def features_of_bag(path: Path) -> Features:
    """Encoder, digest, resolution and patch size as a bag of the same features says them."""
    from ..store import read_bag

    bag = read_bag(path)
    encoder = read_made_by(path).get("encoder") or {}
    options = dict(encoder.get("options", {}))
    return Features(bag.encoder, bag.weights_digest, bag.grid.target_mpp, bag.grid.side_px, options)


def features_of_encoder(name: str, mpp: float, side_px: int, weights_digest: str | None) -> Features:
    """Features of a registered encoder with its published weights, whose digest is taken from the file on this disk.

    Asks no network. ``weights_digest``: what the bags say, where the weights are others or not here.
    Raises ``UnknownNameError`` for an unknown encoder, ``ConfigError`` where there are no weights to look at.
    """
    if not mpp > 0 or side_px < 1:
        raise ConfigError(f"--mpp {mpp:g} --side-px {side_px}: both must be above 0, as your bags say them")
    if weights_digest is None:
        from ..embed.identity import cached_weights
        from ..embed.weights import digest

        weights = cached_weights(name)
        if weights is None:
            raise ConfigError(
                f"the weights of encoder {name!r} are not on this machine, so their digest is not known; "
                f"give --bag FILE.h5 with such features, or --weights-digest TEXT"
            )
        weights_digest = digest(weights)
    return Features(name, weights_digest, mpp, side_px)


def pick_features(
    bag: Path | None, encoder: str | None, mpp: float | None, side_px: int | None, weights_digest: str | None
) -> Features:
    """Features as a bag says them, or as the user does; raises ``ConfigError`` for both or too little."""
    if bag is not None:
        if not (encoder is None and mpp is None and side_px is None and weights_digest is None):
            raise ConfigError("--bag says encoder, digest, mpp and side_px; leave the other four out")
        return features_of_bag(bag)
    if encoder is None or mpp is None or side_px is None:
        raise ConfigError("give --bag FILE.h5, or all of --encoder NAME --mpp UM_PER_PX --side-px PIXELS")
    return features_of_encoder(encoder, mpp, side_px, weights_digest)


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """``["landmarks=128"]`` as ``{"landmarks": 128}``; raises ``ConfigError`` for another form."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--option {text}: write it as name=value, for example --option landmarks=128")
        try:
            options[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {text}: the value is not valid YAML") from error
    return options


def pick_task(name: str | None) -> Task | None:
    """The task that the user names; None: the authors' own."""
    if name is not None and name not in ("classification", "multilabel"):
        raise ConfigError(f"--task {name}: an imported model does classification or multilabel")
    return name  # type: ignore[return-value]


def read_names(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--seen {path} cannot be read ({error}); give a text file, one patient or slide a line"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def summary(out: Path, card: ModelCard, found: Translation) -> list[str]:
    """Lines for the user: what was read, and all that was taken for granted."""

    def words(options: Mapping[str, Any]) -> str:
        return " ".join(f"{name}={value}" for name, value in options.items())

    lines = [
        f"model      {out}: {card.model}, {card.dim} features a patch, {card.task} of {', '.join(card.classes)}",
        f"from file  {words(found.options)}",
    ]
    if found.assumed:
        lines.append(f"assumed    {words(found.assumed)} (the file does not say; else give --option NAME=VALUE)")
    lines += [f"assumed    {note}" for note in found.notes]
    if not card.trained["seen_patients"]:
        lines.append("assumed    no patient of yours was in its training; else list them in a file and give --seen")
    return [*lines, f"apply      wsi predict --model {out} --slides 'incoming/*.svs' --out run"]


def _module(found: Translation, path: Path) -> torch.nn.Module:
    """Our model with the weights in it; raises ``ArtifactError`` for the first shape that does not fit."""
    with torch.random.fork_rng(devices=[]):
        module = models.build(found.model, found.dim, found.outputs, **found.options, **found.assumed)
    for name, wanted in module.state_dict().items():
        if found.state[name].shape != wanted.shape:
            raise ArtifactError(
                f"{path} does not fit together: its {name} would be {tuple(found.state[name].shape)}, "
                f"but the other sizes ask for {tuple(wanted.shape)}; is it whole, and trained with the authors' code?"
            )
    module.load_state_dict(found.state)
    return module.eval()


def _read(path: Path) -> Any:
    kinds = [type(np.dtype(character)) for character in _NUMBERS]
    scalar = np.float64(0).__reduce__()[0]  # how numpy rebuilds a number
    names = ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]  # numpy 1 and 2
    allowed: list[Any] = [*((scalar, name) for name in names), np.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}); give a .pt, .pth or .ckpt") from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise _not_weights(path) from error
        raise ArtifactError(
            f"{path} names {code[1]}, which is code and not weights, so nothing of it was loaded; where it was made, "
            f"save the weights alone: torch.save(model.state_dict(), FILE), of a Lightning file its 'state_dict'"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _not_weights(path) from error


def _not_weights(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged or no file of torch.save; give the .pt, .pth or .ckpt that the training wrote"
    )


def _flat(content: Any, path: Path, prefix: str) -> list[tuple[str, Any]]:
    """(dotted name, value) of nested dictionaries."""
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path} holds a {type(content).__name__} and no state_dict; save the weights alone")
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, path, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs
