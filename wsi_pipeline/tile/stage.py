"""``wsi tile``: tissue, its outlines, a quality-control picture, and the grid of patches of every slide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shapely.geometry import MultiPolygon

from ..artifacts import Provenance, content_key, discard, file_digest, fingerprint, write_bytes, write_provenance
from ..config import ReadConfig, TileConfig
from ..engine import Job
from ..project import Project, RunFolder
from ..read import Overview, open_slide, read_overview
from ..read.resample import area_mean
from ..store import write_grid
from ..types import Bool, PatchGrid, Slide, SlideRow, TissueMask
from . import from_features
from .contours import mask_polygons, rasterise, tissue_geojson
from .detection import detect_tissue, without_unreadable
from .grid import SlideFacts, check_resolution, patch_grid, require_patches
from .outlines import edited_digest, read_outlines, read_roi, roi_path, write_outlines
from .quality import LONGEST_PX, Overlay, quality_picture

_AT_ONCE = 16  # slides whose fingerprint is read at once: a network disk is slow to answer, but answers many


@dataclass(frozen=True)
class Task:
    """All inputs of tiling one slide; sent to the process that does it."""

    row: SlideRow
    read: ReadConfig
    tile: TileConfig
    folder: RunFolder
    edited: bool  # whether the outlines on disk are the user's


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """Write ``tile/<slide_id>.h5``, ``tile/tissue/<slide_id>.geojson`` and ``tile/quality/<slide_id>.jpg``.

    Outlines that the user has edited are used and never overwritten. With ``embed.import`` the patches are those of
    the feature files, and there are neither outlines nor a picture.
    """
    config, folder = project.config, project.folder
    if config.embed.import_ is not None:
        yield from_features.jobs(project, slides)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        all_inputs = list(pool.map(lambda row: _inputs(row, config.tile, folder), slides))
    yield [_job(project, row, inputs) for row, inputs in zip(slides, all_inputs, strict=True)]


def _job(project: Project, row: SlideRow, inputs: dict[str, Any]) -> Job:
    """``inputs``: digests of the slide, of edited outlines and of the region of interest."""
    config, folder = project.config, project.folder
    facts = {"config": _settings(config.tile), "read": config.read.for_key(), **inputs}
    edited = inputs["edited"] is not None
    tissue = "edited" if edited else "detected"
    provenance = Provenance.of(content_key(stage="tile", **facts), "tile", tissue=tissue, **facts)
    complete = partial(_both_exist, folder.tissue(row.slide_id), folder.quality(row.slide_id))
    task = Task(row, config.read, config.tile, folder, edited)
    return Job(row.slide_id, folder.grid(row.slide_id), provenance, tile_slide, (task,), complete=complete)


def tile_slide(task: Task, *, output: Path, provenance: Provenance) -> int:
    """Tile one slide; returns the number of patches."""
    slide_id, config = task.row.slide_id, task.tile
    with open_slide(task.row.path, task.read, task.row.mpp) as slide:
        facts = SlideFacts.of(slide_id, slide)
        check_resolution(facts, config)
        overview = read_overview(slide, mpp=config.tissue_mpp)
        picture = _picture(slide, overview)
    tissue, outlines, notes = _tissue(task, facts, overview)
    roi, more_notes = _roi(task, facts)
    if roi is not None:
        tissue &= rasterise(roi, tissue.shape, overview.side_px0)
    mask = TissueMask(tissue, overview.side_px0, overview.unreadable_px0)
    grid = patch_grid(facts, mask, config)
    provenance = provenance.with_facts(notes=notes + more_notes)
    discard(output)  # if the process is killed below, the slide counts as not tiled
    if not task.edited:
        geojson = tissue_geojson(outlines, slide_id, facts.bounds_px0)
        write_outlines(task.folder.tissue(slide_id), geojson, provenance.key)
    overlay = Overlay(outlines, roi, grid, mask.unreadable_px0, _legend(task, mask, grid))
    quality = task.folder.quality(slide_id)
    write_bytes(quality, quality_picture(picture.rgb, picture.side_px0, overlay))
    write_provenance(quality, provenance)
    require_patches(grid, mask, config)
    write_grid(output, grid, mask, provenance)
    return len(grid)


def _both_exist(outlines: Path, picture: Path, _grid: Path) -> bool:
    """Whether the files beside the grid exist too."""
    return outlines.exists() and picture.exists()


def _inputs(row: SlideRow, config: TileConfig, folder: RunFolder) -> dict[str, Any]:
    """Digests of what the result depends on besides the config. A slide that does not exist fails in its job."""
    try:
        slide = fingerprint(row.path)
    except OSError:
        slide = "missing"
    roi = roi_path(config, row.slide_id)
    return {
        "slide": slide,
        "row_mpp": row.mpp,
        "edited": edited_digest(folder.tissue(row.slide_id)),
        "roi": None if roi is None else file_digest(roi) if roi.is_file() else "missing",
    }


def _settings(config: TileConfig) -> dict[str, Any]:
    """The section without the path of the region of interest, whose content counts by its digest."""
    return {name: value for name, value in config.for_key().items() if name != "roi"}


def _tissue(task: Task, facts: SlideFacts, overview: Overview) -> tuple[Bool, MultiPolygon, tuple[str, ...]]:
    """The mask (h, w), its outlines (px0), and what had to be repaired: from the user's file, else detected."""
    if task.edited:
        outlines, notes = read_outlines(task.folder.tissue(task.row.slide_id), facts.bounds_px0)
        drawn = rasterise(outlines, overview.rgb.shape[:2], overview.side_px0)
        return without_unreadable(drawn, overview), outlines, notes
    tissue = detect_tissue(overview, facts.mpp, task.tile)
    return tissue, mask_polygons(TissueMask(tissue, overview.side_px0)), ()


def _roi(task: Task, facts: SlideFacts) -> tuple[MultiPolygon | None, tuple[str, ...]]:
    path = roi_path(task.tile, task.row.slide_id)
    if path is None:
        return None, ()
    return read_roi(path, task.tile, task.row.slide_id, facts.bounds_px0)


def _picture(slide: Slide, overview: Overview) -> Overview:
    """The overview for the picture: downscaled from the one for tissue where that is large enough, else read."""
    height, width = overview.rgb.shape[:2]
    if max(width, height) < LONGEST_PX:
        return read_overview(slide, max_px=LONGEST_PX)
    factor = max(width, height) / LONGEST_PX
    size = max(1, math.floor(width / factor)), max(1, math.floor(height / factor))
    rgb = area_mean(overview.rgb, (0, 0, size[0] * factor, size[1] * factor), size)
    return Overview(rgb, (overview.side_px0[0] * factor, overview.side_px0[1] * factor), overview.unreadable_px0)


def _legend(task: Task, mask: TissueMask, grid: PatchGrid) -> str:
    mpp_x, mpp_y = grid.mpp
    mpp = f"{mpp_x:.4g}" if mpp_x == mpp_y else f"{mpp_x:.4g} x {mpp_y:.4g}"
    origin = "edited outlines" if task.edited else task.tile.detector
    return (
        f"{grid.slide_id}   {mpp} um/px   tissue {mask.tissue.mean():.1%} ({origin})   "
        f"{len(grid)} patches of {grid.side_px} px at {grid.target_mpp:.4g} um/px"
    )
