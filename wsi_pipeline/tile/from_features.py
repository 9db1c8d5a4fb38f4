"""The grid of a slide whose features another program computed: patches at the places that its feature file states.

Tissue is the area that the patches cover. Patches are sorted in row-major order; ``embed`` sorts the features alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Provenance, content_key, discard, fingerprint
from ..config import ReadConfig
from ..engine import Job
from ..errors import ConfigError, SlideError
from ..interop.feature_files import (
    ImportOptions,
    SlideFiles,
    find,
    import_options,
    index,
    inspect_file,
    key_parts,
    read_array,
    read_xy,
)
from ..project import Project, RunFolder
from ..read import open_slide
from ..store import write_grid
from ..types import Box, Float64, Int64, PatchGrid, SlideRow, TissueMask
from .outlines import edited_digest
from .producers import Layout, Pair, common_step, layout

TARGET_TOLERANCE = 0.25  # about half the distance to the next magnification
_CELLS_PER_SIDE = 4  # mask pixels along a patch
_MAX_CELLS = 4096  # along a side of the mask


@dataclass(frozen=True)
class SlideProperties:
    """Properties of a slide that do not come from its feature file; None: unknown.

    ``why``: the reason why the slide itself could not be opened.
    """

    mpp: Pair | None = None
    size_px0: tuple[int, int] | None = None
    bounds_px0: Box | None = None
    why: str = ""


@dataclass(frozen=True)
class ImportTask:
    """Inputs of one slide's grid; sent to the process that makes it."""

    row: SlideRow
    read: ReadConfig
    options: ImportOptions
    folder: RunFolder
    found: SlideFiles


def jobs(project: Project, slides: Sequence[SlideRow]) -> list[Job]:
    """One job per slide. Raises ``ConfigError`` if the options or the folder cannot be used."""
    config, folder = project.config, project.folder
    if config.tile.roi is not None:
        raise ConfigError("tile.roi restricts patches before they are encoded; leave it out with embed.import")
    options = import_options(config.embed)
    made = []
    for row, found in found_files(project, slides, options):
        facts: dict[str, Any] = {"slide": _fingerprint(row), "row_mpp": row.mpp, "files": found.digests()}
        facts |= {"options": key_parts(options), "read": config.read.for_key()}
        key = content_key(stage="tile", imported=True, problem=found.problem, **facts)
        provenance = Provenance.of(key, "tile", tissue="imported patches", **facts)
        task = ImportTask(row, config.read, options, folder, found)
        made.append(Job(row.slide_id, folder.grid(row.slide_id), provenance, tile_imported, (task,)))
    return made


def found_files(
    project: Project, slides: Sequence[SlideRow], options: ImportOptions
) -> list[tuple[SlideRow, SlideFiles]]:
    """Find the feature file of each slide, named after its slide_id or its slide file. Raises ``ConfigError``."""
    folder = project.config.embed.import_
    if folder is None:
        raise ValueError("embed.import is not set")
    files = index(folder)
    coordinates = files if options.coords is None else index(options.coords)
    return [(row, find((row.slide_id, row.path.stem), folder, files, coordinates, options.encoder)) for row in slides]


def read_layout(found: SlideFiles, options: ImportOptions) -> tuple[Layout, Float64]:
    """Read the geometry of a slide's patches from its feature files.

    Parameters
    ----------
    found : SlideFiles
        The files.
    options : ImportOptions
        Properties that the files lack.

    Returns
    -------
    Layout
        Producer, encoder and patch geometry.
    ndarray of float64, (N, 2)
        Top-left corners in the layout's unit, in the file's order.

    Raises
    ------
    SlideError
        There is no feature file, it cannot be used, or CLAM's two files are not of one tiling.
    ConfigError
        The encoder must be named.
    """
    if found.features is None:
        raise SlideError(found.problem)
    file = inspect_file(found.features)
    coordinates = inspect_file(found.coordinates) if found.coordinates else None
    xy = read_xy(file)
    if "augmented" in file.others and read_array(file.path, "augmented").any():
        raise SlideError(f"{file.path} also has features of augmented patches; make it again without augmentation")
    if coordinates is not None and not np.array_equal(xy, read_xy(coordinates)):
        raise SlideError(f"{file.path} and {coordinates.path} have different coords; give the ones it was made with")
    described = layout(file, coordinates, xy, options)
    return described, xy * described.scale


def tile_imported(task: ImportTask, *, output: Path, provenance: Provenance) -> int:
    """Write one slide's grid; returns the number of patches."""
    described, xy = read_layout(task.found, task.options)
    known = of_slide(task.row, task.read)
    grid, notes = imported_grid(task.row.slide_id, described, xy, known, task.options)
    folder, slide_id = task.folder, task.row.slide_id
    discard(folder.quality(slide_id))  # it shows an earlier grid of ours
    if edited_digest(folder.tissue(slide_id)) is None:
        discard(folder.tissue(slide_id))
    write_grid(output, grid, covered(grid), provenance.with_facts(notes=notes, producer=described.producer))
    return len(grid)


def of_slide(row: SlideRow, read: ReadConfig) -> SlideProperties:
    """Resolution, size and bounds from the slide file; if it does not open, the mpp of manifest or config."""
    try:
        with open_slide(row.path, read, row.mpp) as slide:
            return SlideProperties(slide.mpp, slide.sizes[0], slide.bounds_px0)
    except SlideError as error:
        mpp = row.mpp if row.mpp is not None else read.mpp
        return SlideProperties(mpp if isinstance(mpp, tuple) or mpp is None else (mpp, mpp), why=str(error))


def imported_grid(
    slide_id: str, described: Layout, xy: Float64, known: SlideProperties, options: ImportOptions
) -> tuple[PatchGrid, list[str]]:
    """Build the grid from a feature file's layout.

    Parameters
    ----------
    slide_id : str
        The slide.
    described : Layout
        Patch geometry of the feature file.
    xy : ndarray of float64, (N, 2)
        Top-left corners in the layout's unit, in the file's order.
    known : SlideProperties
        Properties from the slide, the manifest or the config.
    options : ImportOptions
        Properties that the files lack.

    Returns
    -------
    PatchGrid
        The patches in row-major order.
    list of str
        Notes for the provenance.

    Raises
    ------
    SlideError
        A property is missing everywhere, or two sources contradict each other.
    """
    if known.mpp is None:
        raise SlideError(
            f"{slide_id}: feature files do not state how many µm a level-0 pixel is, and the slide does not either "
            f"({known.why}); give it in the manifest's mpp column, or with --mpp (read.mpp)"
        )
    xy_px0 = corners_px0(slide_id, described, xy, known.mpp)
    per_px0 = known.mpp if described.unit == "um" else (1.0, 1.0)
    side = described.side[0] / per_px0[0], described.side[1] / per_px0[1]
    order = row_major(xy_px0)
    stride = described.stride and (described.stride[0] / per_px0[0], described.stride[1] / per_px0[1])
    size = _slide_size(slide_id, described, known, xy_px0, side, options)
    measured = float(np.mean([s * m for s, m in zip(side, known.mpp, strict=True)])) / described.side_px
    grid = PatchGrid(
        slide_id=slide_id,
        xy_px0=xy_px0[order],
        side_px=described.side_px,
        side_px0=side,
        stride_px0=stride or _measured_stride(xy_px0, side),
        target_mpp=_target_mpp(slide_id, measured, options),
        mpp=known.mpp,
        slide_size_px0=size,
        bounds_px0=known.bounds_px0 or (0, 0, *size),
    )
    notes = [
        "rows as in the file" if (order == np.arange(len(order))).all() else "rows sorted by y, then by x",
        f"patches of {measured:.6g} µm/px",
        "stride from the file" if stride else "stride as measured between the patches",
    ]
    return grid, notes + ([f"without the slide: {known.why}"] if known.why else [])


def corners_px0(slide_id: str, described: Layout, xy: Float64, mpp: Pair) -> Int64:
    """Corners (N, 2) in whole level-0 pixels, in the file's order."""
    if not np.isfinite(xy).all():
        raise SlideError(f"{slide_id}: its feature file has coords that are not finite numbers; make it again")
    exact = xy / np.asarray(mpp) if described.unit == "um" else xy
    rounded = np.rint(exact)
    if described.unit == "px0" and (rounded != exact).any():
        raise SlideError(
            f"{slide_id}: coords of its feature file are not whole pixels, as {described.producer} writes them"
        )
    return rounded.astype(np.int64)


def row_major(xy_px0: Int64) -> Int64:
    """Indices (N,) that sort corners (N, 2) top to bottom, then left to right; equal corners keep their order."""
    return np.lexsort((xy_px0[:, 0], xy_px0[:, 1])).astype(np.int64)


def covered(grid: PatchGrid) -> TissueMask:
    """Tissue mask of the area that the patches cover.

    A mask pixel is tissue if a footprint [x, x + side) x [y, y + side) contains its centre. Its side is a quarter of
    a patch, or larger if the mask would have more than 4096 pixels along a side.
    """
    side, size = np.asarray(grid.side_px0), np.asarray(grid.slide_size_px0)
    cell = np.maximum(side / _CELLS_PER_SIDE, size / _MAX_CELLS)  # (2,) px0
    width, height = np.ceil(size / cell).astype(int)
    low = np.ceil(grid.xy_px0 / cell - 0.5).astype(int).clip(0, (width, height))  # (N, 2) first column and row
    high = np.ceil((grid.xy_px0 + side) / cell - 0.5).astype(int).clip(0, (width, height))
    edges = np.zeros((height + 1, width + 1), np.int64)  # its double running sum counts the patches over each pixel
    np.add.at(edges, (low[:, 1], low[:, 0]), 1)
    np.add.at(edges, (high[:, 1], high[:, 0]), 1)
    np.add.at(edges, (low[:, 1], high[:, 0]), -1)
    np.add.at(edges, (high[:, 1], low[:, 0]), -1)
    count = edges.cumsum(axis=0).cumsum(axis=1)[:height, :width]
    return TissueMask(count > 0, (float(cell[0]), float(cell[1])))


def _slide_size(
    slide_id: str, described: Layout, known: SlideProperties, xy_px0: Int64, side: Pair, options: ImportOptions
) -> tuple[int, int]:
    """(width, height): the slide's, else the file's, else the user's. All patches begin inside."""
    size = known.size_px0 or described.slide_size_px0
    if size is None and options.slide_size == "patches":
        width, height = np.ceil((xy_px0 + np.asarray(side)).max(axis=0)).astype(int).tolist()
        size = width, height
    elif size is None and isinstance(options.slide_size, tuple):
        size = options.slide_size
    if size is None:
        raise SlideError(
            f"{slide_id}: its feature file does not state how large the slide is, and the slide is not available "
            f"({known.why}); give --slide-size WIDTHxHEIGHT, or --slide-size patches: as far as the patches reach"
        )
    stated = described.slide_size_px0
    if stated is not None and (abs(stated[0] - size[0]) > 1 or abs(stated[1] - size[1]) > 1):
        raise SlideError(
            f"{slide_id}: its feature file is of a slide of {stated[0]} x {stated[1]} pixels, but the slide has "
            f"{size[0]} x {size[1]}; is it another slide?"
        )
    outside = ((xy_px0 < 0) | (xy_px0 >= np.asarray(size))).any(axis=1)
    if outside.any():
        x, y = xy_px0[outside.argmax()].tolist()
        raise SlideError(
            f"{slide_id}: the patch at ({x}, {y}) lies outside the slide of {size[0]} x {size[1]} pixels; "
            f"is it another slide, or another mpp?"
        )
    return size


def _target_mpp(slide_id: str, measured: float, options: ImportOptions) -> float:
    nominal = options.target_mpp
    if nominal is not None and abs(measured / nominal - 1) > TARGET_TOLERANCE:
        raise SlideError(
            f"{slide_id}: its patches have {measured:.4g} µm/px, too far from --target-mpp {nominal:g}; "
            f"is its mpp right?"
        )
    return nominal or measured


def _measured_stride(xy_px0: Int64, side: Pair) -> Pair:
    """The most common step along rows and along columns; the side if there is none."""
    x, y = xy_px0.T.astype(np.float64)
    return common_step(x, y) or side[0], common_step(y, x) or side[1]


def _fingerprint(row: SlideRow) -> str:
    try:
        return fingerprint(row.path)
    except OSError:
        return "missing"
