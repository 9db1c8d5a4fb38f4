"""Bags of imported features: the same numbers, in the order of the grid that ``tile`` made from their file."""

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
from ..interop.feature_files import ImportOptions, SlideFiles, import_options, key_parts, read_array
from ..project import Project
from ..store import BagWriter, read_grid
from ..tile.from_features import corners_px0, found_files, read_layout, row_major
from ..types import PatchGrid, SlideRow

_ROWS = 4096  # converted at a time
_log = logging.getLogger("wsi_pipeline")


@dataclass(frozen=True)
class ImportTask:
    """Inputs of one imported bag; sent to the process that writes it."""

    found: SlideFiles
    options: ImportOptions
    dtype: str
    grid: Path


def jobs(project: Project, slides: Sequence[SlideRow]) -> list[Job]:
    """One job per slide with a grid. Raises ``ConfigError`` if the options or the folder cannot be used."""
    folder, dtype = project.folder, project.config.embed.dtype
    options = import_options(project.config.embed)
    made = []
    for row, found in found_files(project, slides, options):
        grid = folder.grid(row.slide_id)
        facts: dict[str, Any] = {"options": key_parts(options), "files": found.digests(), "dtype": dtype}
        key = content_key(stage="embed", imported=True, upstream=read_key(grid), **facts)
        task = ImportTask(found, options, dtype, grid)
        provenance = Provenance.of(key, "embed", **facts)
        made.append(Job(row.slide_id, folder.bag(row.slide_id), provenance, embed_imported, (task,)))
    _warn_of_mpp([folder.grid(row.slide_id) for row in slides])
    return made


def embed_imported(task: ImportTask, *, output: Path, provenance: Provenance) -> int:
    """Write one slide's bag; returns the number of its patches.

    Raises ``ArtifactError`` if the file has changed since its grid was made, ``SlideError`` if a feature is not a
    finite number.
    """
    described, xy = read_layout(task.found, task.options)
    grid, _ = read_grid(task.grid)
    corners = corners_px0(grid.slide_id, described, xy, grid.mpp)
    order = row_major(corners)
    if not np.array_equal(corners[order], grid.xy_px0):
        raise ArtifactError(f"{task.found.features} has changed since {task.grid} was made; run `wsi tile` again")
    assert task.found.features is not None  # checked by read_layout
    features = read_array(task.found.features, described.dataset)
    digest = f"imported:{described.producer}"  # the weights of the producer's encoder are unknown
    identity = {"name": described.encoder, "options": {}, "weights": digest}
    provenance = provenance.with_facts(encoder=identity, producer=described.producer)
    with BagWriter(output, grid, features.shape[1], task.dtype) as bag:
        for start in range(0, len(order), _ROWS):
            rows = slice(start, start + _ROWS)
            bag.append(_converted(features[order[rows]], task.dtype, grid, start))
        bag.finish(np.ones(len(grid), bool), described.encoder, digest, provenance)
    return len(grid)


def _converted(features: np.ndarray, dtype: str, grid: PatchGrid, start: int) -> np.ndarray:
    """(n, D) features of the patches from ``start`` on, in the bag's type."""
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        result = features.astype(dtype)
    bad = ~np.isfinite(result).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        x, y = grid.xy_px0[start + row].tolist()
        where = f"{grid.slide_id}: the imported features of the patch at ({x}, {y})"
        if np.isfinite(features[row]).all():
            raise SlideError(f"{where} are too large for {dtype}; --set embed.dtype=float32")
        raise SlideError(f"{where} contain NaN or infinity; make them again, or leave the slide out")
    return result


def _warn_of_mpp(grids: Sequence[Path]) -> None:
    """Warn if the patches of the slides have different resolutions: a model is trained on one."""
    found = [read_grid(path)[0].target_mpp for path in grids]
    low, high = min(found), max(found)
    if low != high:
        middle = float(f"{np.median(found):.2g}")
        _log.warning(
            "the imported patches have %.4g to %.4g µm/px, but a model is trained on one resolution; if these are "
            "one magnification, set --target-mpp %g (embed.import_options.target_mpp)",
            low,
            high,
            middle,
        )
