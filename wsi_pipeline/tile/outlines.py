"""The tissue's outlines on disk: written by the program, or by the user, whose word then counts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import shapely
from shapely.geometry import MultiPolygon

from ..artifacts import Provenance, file_digest, provenance_path, write_provenance, write_text
from ..config import TileConfig
from ..errors import ArtifactError, ConfigError, SlideError
from ..read.annotations import read_annotation
from ..types import Box


def edited_digest(path: Path) -> str | None:
    """sha256 of the outlines at ``path`` where the user drew or changed them; None where the program wrote them, or
    there are none.

    The program notes the digest of all that it writes; whatever has another one is the user's.
    """
    if not path.exists():
        return None
    digest = file_digest(path)
    return None if digest in _written(path) else digest


def write_outlines(path: Path, text: str, key: str) -> None:
    """Replace the program's own outlines by ``text``.

    The note names the old digest too until the new file stands: if the program is killed in between, neither is
    taken for the user's. Raises ``SlideError`` where the user has changed them since the run began.
    """
    if edited_digest(path) is not None:
        raise SlideError(f"{path} was edited while the slide was being tiled; run again to use it")
    digest = hashlib.sha256(text.encode()).hexdigest()
    safe = {digest, file_digest(path)} if path.exists() else {digest}
    write_provenance(path, Provenance.of(key, "tile", written=sorted(safe)))
    write_text(path, text)
    write_provenance(path, Provenance.of(key, "tile", written=[digest]))


def read_outlines(path: Path, bounds_px0: Box) -> tuple[MultiPolygon, tuple[str, ...]]:
    """The user's outlines in px0, and what had to be repaired. Raises ``ArtifactError`` where they cannot be used."""
    try:
        annotation = read_annotation(path, bounds_px0)
    except ConfigError as error:
        raise ArtifactError(f"{error}, or delete the file to have the tissue found again") from error
    return annotation.area(), annotation.notes


def roi_path(config: TileConfig, slide_id: str) -> Path | None:
    """The file that restricts this slide; None: nothing does."""
    if config.roi is None:
        return None
    return config.roi / f"{slide_id}.geojson" if config.roi.is_dir() else config.roi


def read_roi(path: Path, config: TileConfig, slide_id: str, bounds_px0: Box) -> tuple[MultiPolygon, tuple[str, ...]]:
    """The region of interest in px0, and what had to be repaired.

    Raises ``ConfigError`` where tile.roi cannot be used, ``SlideError`` where it has nothing for this slide.
    """
    if not path.exists() and path != config.roi:
        raise SlideError(f"{slide_id} has no region of interest: {path} is not there; draw one, or leave the slide out")
    annotation = read_annotation(path, bounds_px0)
    area = annotation.area(None if config.roi_class is None else (config.roi_class,))
    if shapely.is_empty(area):
        wanted = "region" if config.roi_class is None else f"region of class {config.roi_class!r} (tile.roi_class)"
        found = ", ".join(repr(name) for name in annotation.classes) or "none"
        raise SlideError(f"{slide_id}: {path} holds no {wanted}; its classes are: {found}")
    return area, annotation.notes


def _written(path: Path) -> list[str]:
    """Digests that the program noted for ``path``; none where the note is absent or damaged."""
    try:
        note = json.loads(provenance_path(path).read_text(encoding="utf-8"))
        return list(json.loads(note["made_by"])["written"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
