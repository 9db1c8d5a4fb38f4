"""The config for applying a given model to slides: everything follows from the model's card."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .aggregate.checkpoint import load_card, model_folders
from .config import Config, build_config
from .embed import encoders
from .embed.weights import RANDOM
from .errors import ArtifactError, ConfigError
from .project import slides_from_paths, write_manifest

# Suffixes of OpenSlide's formats and of plain images; used only where a folder is given.
_SLIDE_SUFFIXES = {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"}
_SLIDE_SUFFIXES |= {".czi", ".dcm", ".png", ".jpg", ".jpeg"}


def apply_config(model: Path, slides: Sequence[str], out: Path, overrides: list[str]) -> Config:
    """The config of ``wsi predict --model --slides --out``; writes the manifest into ``out``.

    Patch size, resolution and encoder are the model's. Raises ``ConfigError`` where no slide matches, and
    ``ArtifactError`` where ``model`` contains no model, or one whose encoder is a function of another package that
    ``overrides`` do not name: a model.json from elsewhere must not select which code runs.
    """
    folder = model_folders(model)[0]
    card = load_card(folder)
    is_code = ":" in card.encoder and not encoders.is_registered(card.encoder)
    rows = slides_from_paths(find_slides(slides))
    out = out.resolve()
    manifest = out / "slides.csv"
    data: dict[str, Any] = {
        "slides": str(manifest),
        "out": str(out),
        "tile": {"mpp": card.target_mpp, "side_px": card.side_px},
        "embed": {
            **({} if is_code else {"encoder": card.encoder}),
            "encoder_options": card.encoder_options,
            "pretrained": card.weights_digest != RANDOM,
        },
        "predict": {"model": str(model.resolve())},
    }
    config = build_config(data, overrides, base=Path.cwd(), source="--set")
    if is_code and config.embed.encoder != card.encoder:
        raise ArtifactError(
            f"{folder} names the encoder {card.encoder!r}, which is code; "
            f"to allow it, --set embed.encoder={card.encoder}"
        )
    write_manifest(manifest, rows)
    return config


def find_slides(patterns: Sequence[str]) -> list[Path]:
    """The files that paths, folders and patterns name, each once. Raises ``ConfigError`` where one names none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [p for p in path.iterdir() if p.suffix.lower() in _SLIDE_SUFFIXES]
        else:
            matches = [Path(p) for p in glob.glob(str(path), recursive=True)]
        if not matches:
            raise ConfigError(f"--slides {pattern}: no slide there; give a file, a folder, or a pattern in quotes")
        found.update(dict.fromkeys(p.resolve() for p in matches))
    return list(found)
