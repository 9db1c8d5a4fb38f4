"""Tiles every slide: tissue, its outlines, a picture to check, and the grid of patches."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shapely.geometry import MultiPolygon

from ..artifacts import Provenance, content_key, discard, file_digest, fingerprint, write_bytes, write_provenance
from ..config import ReadConfig, TileConfig
from ..engine import Engine, Job
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

_AT_ONCE = 16  # slides whose fingerprint is taken at once: a network disk answers late, but many


@dataclass(frozen=True)
class Task:
    """All that tiling one slide depends on; crosses to the process that does it."""

    row: SlideRow
    read: ReadConfig
    tile: TileConfig
    folder: RunFolder
    key: str
    inputs: dict[str, Any]  # digests of the slide, of edited outlines and of the region of interest

    @property
    def edited(self) -> bool:
        """Whether the outlines on disk are the user's."""
        return self.inputs["edited"] is not None


def run(project: Project, engine: Engine) -> None:
    """Write ``tile/<slide_id>.h5``, ``tile/tissue/<slide_id>.geojson`` and ``tile/quality/<slide_id>.jpg``.

    Outlines that the user has edited are used and never overwritten. With ``embed.import`` the patches are those of
    the feature files, and there are neither outlines nor a picture.
    """
    config, folder = project.config, project.folder
    if config.embed.import_ is not None:
        engine.run("tile", from_features.jobs(project))
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        all_inputs = list(pool.map(lambda row: _inputs(row, config.tile, folder), project.slides))
    jobs = []
    for row, inputs in zip(project.slides, all_inputs, strict=True):
        key = content_key(stage="tile", config=_settings(config.tile), read=config.read.for_key(), **inputs)
        task = Task(row, config.read, config.tile, folder, key, inputs)
        whole = partial(_stand, folder.tissue(row.slide_id), folder.quality(row.slide_id))
        jobs.append(Job(row.slide_id, folder.grid(row.slide_id), key, tile_slide, (task,), whole=whole))
    engine.run("tile", jobs)


def tile_slide(task: Task) -> int:
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
    provenance = _provenance(task, notes + more_notes)
    discard(task.folder.grid(slide_id))  # killed below, the slide is not tiled
    if not task.edited:
        write_outlines(task.folder.tissue(slide_id), tissue_geojson(outlines, slide_id, facts.bounds_px0), task.key)
    overlay = Overlay(outlines, roi, grid, mask.unreadable_px0, _legend(task, mask, grid))
    quality = task.folder.quality(slide_id)
    write_bytes(quality, quality_picture(picture.rgb, picture.side_px0, overlay))
    write_provenance(quality, provenance)
    require_patches(grid, mask, config)
    write_grid(task.folder.grid(slide_id), grid, mask, provenance)
    return len(grid)


def _stand(outlines: Path, picture: Path, grid: Path) -> bool:  # noqa: ARG001
    """Whether what is written beside the grid is there too."""
    return outlines.exists() and picture.exists()


def _inputs(row: SlideRow, config: TileConfig, folder: RunFolder) -> dict[str, Any]:
    """What the result depends on besides the config, as digests. A slide that is not there fails in its job."""
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
    """The section without the path of the region of interest: its digest counts, not where it lies."""
    return {name: value for name, value in config.for_key().items() if name != "roi"}


def _provenance(task: Task, notes: tuple[str, ...]) -> Provenance:
    return Provenance.of(
        task.key,
        "tile",
        config=_settings(task.tile),
        read=task.read.for_key(),
        tissue="edited" if task.edited else "detected",
        notes=notes,
        **task.inputs,
    )


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
    """The overview for people: shrunk from the one for tissue where that is large enough, else read."""
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
