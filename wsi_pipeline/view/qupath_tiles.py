"""Tiles with measurements for QuPath, which "Measure > Show measurement maps" colours.

QuPath's frame starts at the slide's bounds. One invalid feature makes it reject the whole file: every classification
needs a colour, every measurement must be a finite number, nothing may be null, and every ring must be closed.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from ..artifacts import atomic_path
from ..read.geojson import to_qupath_frame
from ..types import Explanation, Int64, PatchGrid

TISSUE_COLOR = (0, 160, 0)
# Version-5 ids in this namespace: a patch keeps its id, and the loader recognises its own objects by the version.
_NAMESPACE = uuid.UUID("a4de1f5c-6f3b-5b0e-9d2c-0f6f5d1b8c11")

Feature = dict[str, Any]


def kept_tiles(scores: np.ndarray, most: int) -> Int64:
    """Rows of the ``most`` largest absolute scores (N,), in grid order; all rows where there are no more than that."""
    order = np.argsort(-np.abs(scores), kind="stable")[:most]
    return np.sort(order).astype(np.int64)


def tile_features(explanations: Sequence[Explanation], rows: Int64) -> Iterator[Feature]:
    """One locked tile object for each of ``rows``, with one measurement per explanation."""
    grid = explanations[0].grid
    names = [e.label for e in explanations]
    scores = np.stack([e.scores[rows] for e in explanations], axis=1)  # (n, C)
    (width, height), (x0, y0) = grid.side_px0, grid.bounds_px0[:2]
    for (x_px0, y_px0), measured in zip(grid.xy_px0[rows].tolist(), scores, strict=True):
        x, y = x_px0 - x0, y_px0 - y0  # in QuPath's frame
        right, bottom = _plain(x + width), _plain(y + height)
        ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        values = ((name, _shortest(score)) for name, score in zip(names, measured, strict=True))
        yield {
            "type": "Feature",
            "id": object_id(grid, f"{x_px0},{y_px0}"),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "tile",
                "isLocked": True,
                "measurements": {name: value for name, value in values if math.isfinite(value)},
            },
        }


def tissue_feature(tissue: BaseGeometry, grid: PatchGrid, name: str) -> Feature:
    """The tissue (level-0 pixels) as one locked annotation called ``name``."""
    moved = to_qupath_frame(tissue, grid.bounds_px0)
    return {
        "type": "Feature",
        "id": object_id(grid, "tissue"),
        "geometry": mapping(moved),
        "properties": {
            "objectType": "annotation",
            "isLocked": True,
            "name": name,
            "classification": {"name": "Tissue", "color": list(TISSUE_COLOR)},
        },
    }


def object_id(grid: PatchGrid, what: str) -> str:
    """The id of an object: the same for the same patch of the same slide in every run."""
    return str(uuid.uuid5(_NAMESPACE, f"{grid.slide_id}/{what}"))


def write_tiles(path: Path, explanations: Sequence[Explanation], first: int, most: int, tissue: BaseGeometry) -> int:
    """Write the tissue and the tiles of one slide as GeoJSON.

    Parameters
    ----------
    path : Path
    explanations : sequence of Explanation
        One measurement each, all on the same grid.
    first : int
        The explanation whose largest absolute scores are kept where there are more than ``most`` patches; the name of
        the tissue annotation then states it.
    most : int
        Largest number of tiles.
    tissue : geometry
        In level-0 pixels.

    Returns
    -------
    int
        Number of tiles.
    """
    grid = explanations[0].grid
    rows = kept_tiles(explanations[first].scores, most)
    name = "Tissue"
    if len(rows) < len(grid):
        name += f" (tiles: the {len(rows)} of {len(grid)} with the largest |{explanations[first].label}|)"
    outline = [] if tissue.is_empty else [tissue_feature(tissue, grid, name)]
    with atomic_path(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number, feature in enumerate(chain(outline, tile_features(explanations, rows))):
            file.write((",\n" if number else "") + _line(feature))
        file.write("\n]}\n")
    return len(rows)


def _line(feature: Mapping[str, Any]) -> str:
    return json.dumps(feature, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: float) -> float:
    """Rounded to hundredths of a pixel; whole numbers as integers."""
    rounded = round(value, 2)
    return int(rounded) if rounded == int(rounded) else rounded


def _shortest(score: np.float32) -> float:
    """The shortest decimal number that gives this float32."""
    return float(str(score))
