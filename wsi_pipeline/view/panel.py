"""The panel of one slide in the report: the slide, its maps as an overlay, and the patches with the highest scores.

Everything is drawn in level-0 pixels: the pictures are placed in an SVG with these units, so nothing is resampled to
fit, and nothing can be shifted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from ..artifacts import Provenance, write_text_with_provenance
from ..config import ReadConfig, ViewConfig
from ..errors import ConfigError, RegionError, SlideError
from ..heatmap.metadata import Channel, is_constant, primary
from ..heatmap.ngff import Pyramid, read_heatmap
from ..read import open_slide, patch_level, read_overview, read_patch
from ..read.annotations import read_annotation
from ..store import read_explanations, read_grid
from ..types import Box, Explanation, Int64, PatchGrid, Slide, SlideRow
from .pages import render, uid
from .pictures import crop, jpeg_uri, map_uri

PATCH_PX = 144  # side of a patch in the report
_LARGEST_CROP = 8  # an overview is at most this many times larger than the part of it that is shown
_UNITS = {"value": "predicted value, in the unit of the label", "risk": "risk (log hazard)"}  # others as they are

Frame = tuple[float, float, float, float]  # (x, y, width, height) in level-0 pixels


@dataclass(frozen=True)
class PanelInput:
    """The inputs of one panel; it can be pickled to a worker process."""

    slide: SlideRow
    read: ReadConfig
    view: ViewConfig
    tumour_classes: tuple[str, ...] | None
    grid: Path
    heatmap: Path | None
    explanation: Path | None  # of the primary channel
    imported: bool = False  # whether features were imported, so that the slide may be absent


@dataclass(frozen=True)
class Picture:
    """A picture and its position."""

    uri: str
    frame: Frame


@dataclass(frozen=True)
class Map:
    """One channel as a picture with its legend. ``key`` is the same for the same channel of every slide."""

    key: str
    label: str
    picture: Picture
    signed: bool
    constant: bool  # whether all patches have the same score
    unit: str
    meaning: str  # of the sign; empty for unsigned maps
    low: str
    high: str


@dataclass(frozen=True)
class Patch:
    """One of the patches with the highest scores. ``uri`` is None where it cannot be read."""

    number: int
    uri: str | None
    score: str
    frame: Frame


@dataclass(frozen=True)
class Panel:
    """The values of the template of one slide."""

    uid: str
    view_box: Frame
    stroke: float  # a hundredth of the larger side, in level-0 pixels
    thumbnail: Picture | None  # None: the slide is not available
    maps: tuple[Map, ...]
    primary: int
    outline: str  # SVG path
    unreadable: tuple[Frame, ...]
    patches: tuple[Patch, ...]
    ranked_by: str
    facts: tuple[str, ...]
    notes: tuple[str, ...]


def write_panel(inputs: PanelInput, *, output: Path, provenance: Provenance) -> int:
    """Write the HTML of one slide's panel; returns the number of pictures in it.

    Raises ``SlideError`` where the slide cannot be opened, except with imported features: then the panel has no picture
    of the slide.
    """
    try:
        with open_slide(inputs.slide.path, inputs.read, inputs.slide.mpp) as slide:
            panel = make_panel(inputs, slide)
    except SlideError as error:
        if not inputs.imported:
            raise
        panel = make_panel(inputs, None, f"no picture of the slide: {error}")
    write_text_with_provenance(output, render("panel.html", panel=panel), provenance)
    return 1 + len(panel.maps) + len(panel.patches)


def make_panel(inputs: PanelInput, slide: Slide | None, missing: str = "") -> Panel:
    """Read the contents of a panel. ``missing``: the reason why there is no ``slide`` and thus no picture of it."""
    grid, mask = read_grid(inputs.grid)
    bounds = slide.bounds_px0 if slide else grid.bounds_px0
    thumbnail, px0, undecoded = _thumbnail(slide, grid, inputs.view.thumbnail_px)
    pyramid = read_heatmap(inputs.heatmap) if inputs.heatmap else None
    ranked = read_explanations(inputs.explanation)[0] if inputs.explanation else None
    outline, notes = annotation_path(inputs, grid.bounds_px0, px0)
    notes += [missing] if missing else []
    unreadable = (*undecoded, *mask.unreadable_px0)
    if unreadable:
        notes.append("part of this slide cannot be decoded; it is hatched, and no patch of it was used")
    if ranked and len(ranked.grid) > inputs.view.max_tiles:
        kept = f"the {inputs.view.max_tiles:,} of {len(ranked.grid):,} with the largest |scores| only"
        notes.append(f"QuPath tiles: {kept}")
    if ranked and len(ranked.grid) > 1 and is_constant(ranked.scores):
        notes.append(f"{ranked.label} is the same for all patches, so it ranks none above the others")
        ranked = None
    return Panel(
        uid=uid(grid.slide_id),
        view_box=bounds,
        stroke=max(bounds[2:]) / 100,
        thumbnail=thumbnail,
        maps=tuple(coloured(pyramid, px0)) if pyramid else (),
        primary=_primary(pyramid.channels) if pyramid else 0,
        outline=outline,
        unreadable=unreadable,
        patches=tuple(top_patches(slide, ranked, inputs.view.top_patches)) if ranked else (),
        ranked_by=ranked.label if ranked else "",
        facts=tuple(slide_facts(inputs.slide.path.name, grid)),
        notes=tuple(notes),
    )


def _thumbnail(slide: Slide | None, grid: PatchGrid, longest_px: int) -> tuple[Picture | None, float, tuple[Box, ...]]:
    """A picture of the scanned part, at most ``longest_px`` long; its level-0 pixels per pixel; undecodable boxes."""
    if slide is None:
        return None, max(grid.bounds_px0[2:]) / longest_px, ()
    bounds = slide.bounds_px0
    zoom = min(max(slide.sizes[0]) / max(bounds[2:]), _LARGEST_CROP)
    overview = read_overview(slide, max_px=math.ceil(longest_px * zoom))
    rgb, frame = crop(overview.rgb, overview.side_px0, bounds)
    return Picture(jpeg_uri(rgb), frame), overview.side_px0[0], overview.unreadable_px0


def _primary(channels: Sequence[Channel]) -> int:
    return primary([(c.model, c.method) for c in channels], [c.selected for c in channels])


def slide_facts(name: str, grid: PatchGrid) -> list[str]:
    """The caption of the slide: file name, size, resolution and patches."""
    (width, height), (x, y) = grid.slide_size_px0, grid.mpp
    return [
        name,
        f"{width:,} × {height:,} px",
        f"{x:.4g} µm/px" if math.isclose(x, y, rel_tol=1e-3) else f"{x:.4g} × {y:.4g} µm/px",
        f"{len(grid):,} patches of {grid.side_px * grid.target_mpp:.4g} µm",
    ]


def coloured(pyramid: Pyramid, px0: float) -> list[Map]:
    """All channels as pictures, from the level for a resolution of ``px0`` level-0 pixels per pixel."""
    level = pyramid.level_for(px0)
    side = pyramid.cell_px0 * 2**level
    rows, cols = pyramid.shapes[level]
    seen: dict[tuple[str, str], int] = {}
    maps = []
    for i, channel in enumerate(pyramid.channels):
        of_method = seen[channel.model, channel.method] = seen.get((channel.model, channel.method), -1) + 1
        values = pyramid.read(i, level)
        constant = is_constant(values)
        uri = map_uri(values, channel.window, channel.signed, constant=constant)
        low, high = (f"{v:.3g}" for v in channel.window)
        maps.append(
            Map(
                key=f"{channel.model} · {channel.method}" + (f" · {of_method + 1}" if of_method else ""),
                label=channel.label,
                picture=Picture(uri, (0, 0, cols * side, rows * side)),
                signed=channel.signed,
                constant=constant,
                unit=_UNITS.get(channel.unit, channel.unit),
                meaning=sign_meaning(channel.target) if channel.signed else "",
                low=low,
                high=high,
            )
        )
    return maps


def sign_meaning(target: str) -> str:
    """What the sign of a score means for ``target``: a class, or "value" (regression) or "risk" (survival)."""
    if target in ("value", "risk"):
        return f"above 0 raises the predicted {target}, below lowers it"
    return f"above 0 is evidence for {target}, below against it"


def top_rows(scores: np.ndarray, count: int) -> Int64:
    """Rows of the ``count`` highest scores (N,), highest first; ties in grid order."""
    return np.argsort(-scores, kind="stable")[:count].astype(np.int64)


def top_patches(slide: Slide | None, explanation: Explanation, count: int) -> list[Patch]:
    """The ``count`` highest patches, as the encoder gets them but smaller; without a slide no picture."""
    grid = explanation.grid
    level = patch_level(slide, grid) if slide else 0
    patches = []
    for number, row in enumerate(top_rows(explanation.scores, count), 1):
        x, y = grid.xy_px0[row].tolist()
        uri = None
        with contextlib.suppress(RegionError):
            if slide:
                uri = jpeg_uri(read_patch(slide, (x, y), grid.side_px0, min(PATCH_PX, grid.side_px), level))
        patches.append(Patch(number, uri, f"{explanation.scores[row]:.3g}", (x, y, *grid.side_px0)))
    return patches


def annotation_path(inputs: PanelInput, bounds_px0: Box, tolerance_px0: float) -> tuple[str, list[str]]:
    """The annotated area as an SVG path, and notes; an annotation that cannot be read gives a note."""
    path = inputs.slide.annotation
    if path is None:
        return "", []
    try:
        area = read_annotation(path, bounds_px0).area(inputs.tumour_classes)
    except ConfigError as error:
        return "", [f"no outline: {error}"]
    return svg_path(area.simplify(tolerance_px0 / 2)), []


def svg_path(area: BaseGeometry) -> str:
    """The rings of ``area`` as an SVG path, in whole pixels."""
    parts = shapely.get_parts(area)
    rings: Sequence[np.ndarray] = [shapely.get_coordinates(ring) for ring in shapely.get_rings(parts)]
    return "".join("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in ring[:-1]) + "Z" for ring in rings)
