"""Bags whose features another program made: the same numbers, in the order of the grid that ``tile`` made of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Provenance, content_key, read_key
from ..engine import Job
from ..errors import ArtifactError, SlideError
from ..interop.feature_files import Found, ImportOptions, import_options, key_parts, read_array
from ..project import Project
from ..store import BagWriter, read_grid
from ..tile.from_features import corners_px0, found_files, read_layout, row_major
from ..types import PatchGrid, SlideRow

_ROWS = 4096  # converted at a time
_log = logging.getLogger("wsi_pipeline")


@dataclass(frozen=True)
class ImportTask:
    """All that one imported bag depends on; crosses to the process that writes it."""

    found: Found
    options: ImportOptions
    dtype: str
    grid: Path
    bag: Path
    key: str
    inputs: dict[str, str]


def jobs(project: Project, slides: Sequence[SlideRow]) -> list[Job]:
    """One job a slide that has a grid. Raises ``ConfigError`` where the options or the folder cannot be used."""
    folder, dtype = project.folder, project.config.embed.dtype
    options = import_options(project.config.embed)
    made = []
    for row, found in found_files(project, slides, options):
        grid, bag, inputs = folder.grid(row.slide_id), folder.bag(row.slide_id), found.digests()
        key = content_key(
            stage="embed", imported=key_parts(options), dtype=dtype, upstream=read_key(grid), files=inputs
        )
        task = ImportTask(found, options, dtype, grid, bag, key, inputs)
        made.append(Job(row.slide_id, bag, key, embed_imported, (task,)))
    _warn_of_mpp([folder.grid(row.slide_id) for row in slides])
    return made


def embed_imported(task: ImportTask) -> int:
    """Write one slide's bag; returns the number of its patches.

    Raises ``ArtifactError`` where the file has changed since its grid was made, ``SlideError`` where a feature is no
    finite number.
    """
    described, xy = read_layout(task.found, task.options)
    grid, _ = read_grid(task.grid)
    corners = corners_px0(grid.slide_id, described, xy, grid.mpp)
    order = row_major(corners)
    if not np.array_equal(corners[order], grid.xy_px0):
        raise ArtifactError(f"{task.found.features} has changed since {task.grid} was made; run `wsi tile` again")
    assert task.found.features is not None  # read_layout says so
    features = read_array(task.found.features, described.dataset)
    digest = f"imported:{described.producer}"  # their weights are not known, and ours are others
    provenance = _provenance(task, described.producer, described.encoder, digest)
    with BagWriter(task.bag, grid, features.shape[1], task.dtype) as bag:
        for start in range(0, len(order), _ROWS):
            rows = slice(start, start + _ROWS)
            bag.append(_converted(features[order[rows]], task.dtype, grid, start))
        bag.finish(np.ones(len(grid), bool), described.encoder, digest, provenance)
    return len(grid)


def _provenance(task: ImportTask, producer: str, encoder: str, digest: str) -> Provenance:
    facts: dict[str, Any] = {"options": key_parts(task.options), "files": task.inputs, "producer": producer}
    said = {"name": encoder, "options": {}, "weights": digest}
    return Provenance.of(task.key, "embed", encoder=said, dtype=task.dtype, **facts)


def _converted(features: np.ndarray, dtype: str, grid: PatchGrid, start: int) -> np.ndarray:
    """(n, D) features of the patches from ``start`` on, in the bag's type."""
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        result = features.astype(dtype)
    bad = ~np.isfinite(result).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        x, y = grid.xy_px0[start + row].tolist()
        where = f"{grid.slide_id}: the imported features of the patch at ({x}, {y})"
        if np.isfinite(features[row]).all():
            raise SlideError(f"{where} are too large for {dtype}; --set embed.dtype=float32")
        raise SlideError(f"{where} hold NaN or infinity; make them again, or leave the slide out")
    return result


def _warn_of_mpp(grids: Sequence[Path]) -> None:
    """Says it where the slides' patches are not of one resolution: a model is trained on one."""
    found = [read_grid(path)[0].target_mpp for path in grids]
    low, high = min(found), max(found)
    if low != high:
        middle = float(f"{np.median(found):.2g}")
        _log.warning(
            "the imported patches are of %.4g to %.4g µm/px, and a model is trained on one resolution; if these are "
            "one magnification, say so with --target-mpp %g (embed.import_options.target_mpp)",
            low,
            high,
            middle,
        )
