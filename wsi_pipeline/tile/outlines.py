"""The tissue outlines on disk: written by the program, or edited by the user, whose version takes precedence."""

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
    """Digest of a slide's outlines if the user drew or changed them.

    The program records the digest of every file that it writes; a file with any other digest is the user's.

    Parameters
    ----------
    path : Path
        The outlines, GeoJSON.

    Returns
    -------
    str or None
        sha256 of the user's outlines; None if the program wrote them, or if there are none.
    """
    if not path.exists():
        return None
    digest = file_digest(path)
    return None if digest in _written(path) else digest


def write_outlines(path: Path, text: str, key: str) -> None:
    """Replace the program's own outlines.

    The record contains the old digest too until the new file is written: if the program is killed in between, neither
    file is mistaken for the user's.

    Parameters
    ----------
    path : Path
        The outlines, GeoJSON.
    text : str
        The new content.
    key : str
        Content key of the slide's grid.

    Raises
    ------
    SlideError
        The user has changed the outlines since the run began.
    """
    if edited_digest(path) is not None:
        raise SlideError(f"{path} was edited while the slide was being tiled; run again to use it")
    digest = hashlib.sha256(text.encode()).hexdigest()
    safe = {digest, file_digest(path)} if path.exists() else {digest}
    write_provenance(path, Provenance.of(key, "tile", written=sorted(safe)))
    write_text(path, text)
    write_provenance(path, Provenance.of(key, "tile", written=[digest]))


def read_outlines(path: Path, bounds_px0: Box) -> tuple[MultiPolygon, tuple[str, ...]]:
    """Read the user's outlines.

    Returns
    -------
    MultiPolygon
        Tissue in level-0 pixels.
    tuple of str
        What was repaired.

    Raises
    ------
    ArtifactError
        The outlines cannot be used.
    """
    try:
        annotation = read_annotation(path, bounds_px0)
    except ConfigError as error:
        raise ArtifactError(f"{error}, or delete the file to have the tissue found again") from error
    return annotation.area(), annotation.notes


def roi_path(config: TileConfig, slide_id: str) -> Path | None:
    """The file with the region of interest of a slide; None without ``tile.roi``."""
    if config.roi is None:
        return None
    return config.roi / f"{slide_id}.geojson" if config.roi.is_dir() else config.roi


def read_roi(path: Path, config: TileConfig, slide_id: str, bounds_px0: Box) -> tuple[MultiPolygon, tuple[str, ...]]:
    """Read the region of interest of a slide.

    Returns
    -------
    MultiPolygon
        Region in level-0 pixels.
    tuple of str
        What was repaired.

    Raises
    ------
    ConfigError
        ``tile.roi`` cannot be used.
    SlideError
        It has no region for this slide.
    """
    if not path.exists() and path != config.roi:
        raise SlideError(
            f"{slide_id} has no region of interest: {path} does not exist; draw one, or leave the slide out"
        )
    annotation = read_annotation(path, bounds_px0)
    area = annotation.area(None if config.roi_class is None else (config.roi_class,))
    if shapely.is_empty(area):
        missing = "region" if config.roi_class is None else f"region of class {config.roi_class!r} (tile.roi_class)"
        found = ", ".join(repr(name) for name in annotation.classes) or "none"
        raise SlideError(f"{slide_id}: {path} has no {missing}; its classes are: {found}")
    return area, annotation.notes


def _written(path: Path) -> list[str]:
    """Digests that the program recorded for ``path``; none if the record is absent or damaged."""
    try:
        record = json.loads(provenance_path(path).read_text(encoding="utf-8"))
        return list(json.loads(record["made_by"])["written"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
