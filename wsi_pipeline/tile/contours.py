"""Conversion of a tissue mask to outlines that QuPath opens, and back."""

from __future__ import annotations

import json
import uuid

import numpy as np
import shapely
from shapely.geometry import LinearRing, MultiLineString, MultiPolygon, Polygon, mapping
from skimage.measure import find_contours

from ..read.geojson import to_qupath_frame
from ..types import Bool, Box, TissueMask

SIMPLIFY_PX = 0.3  # of a mask pixel; below 0.35 no outline reaches the next pixel's centre: the mask is preserved
_DECIMALS = 2
_TISSUE = {"name": "Tissue", "color": [0, 160, 0]}


def mask_polygons(mask: TissueMask) -> MultiPolygon:
    """Trace the outlines of the tissue, halfway between the centres of pixels inside and outside.

    Parameters
    ----------
    mask : TissueMask
        The tissue.

    Returns
    -------
    MultiPolygon
        Outlines with holes in level-0 pixels; ``rasterise`` converts them to the same mask.
    """
    padded = np.pad(mask.tissue, 1).astype(np.float32)
    scale = np.asarray(mask.side_px0)
    rings = []
    contours = find_contours(padded, 0.5)  # type: ignore[no-untyped-call]
    for contour in contours:  # (n, 2) rows and columns, in units of the padded mask's pixel centres
        ring = LinearRing(contour[:, ::-1]).simplify(SIMPLIFY_PX)
        rings.append(LinearRing(np.round((shapely.get_coordinates(ring) - 0.5) * scale, _DECIMALS)))
    pieces = shapely.get_parts(shapely.build_area(MultiLineString(rings)))
    return MultiPolygon([p for p in pieces if isinstance(p, Polygon)])


def rasterise(area: MultiPolygon, shape: tuple[int, int], side_px0: tuple[float, float]) -> Bool:
    """Convert an area to a mask: the pixels whose centres lie inside, by the even-odd rule.

    Parameters
    ----------
    area : MultiPolygon
        In level-0 pixels.
    shape : (int, int)
        (h, w) of the mask.
    side_px0 : (float, float)
        Width and height of a mask pixel in level-0 pixels.

    Returns
    -------
    ndarray of bool, (h, w)
        True inside the area.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int32)
    for ring in shapely.get_rings(shapely.get_parts(area)):
        xy = shapely.get_coordinates(ring) / np.asarray(side_px0) - 0.5  # centre of pixel (i, j) at (j, i)
        (x0, y0), (x1, y1) = xy[:-1].T, xy[1:].T
        first = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(np.int64)
        stop = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(np.int64)
        count = stop - first
        edge = np.repeat(np.arange(len(count)), count)  # (n,) one entry per edge and row that it crosses
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        x = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
        np.add.at(crossings, (row, np.clip(np.ceil(x), 0, width).astype(np.int64)), 1)
    inside: Bool = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return inside


def tissue_geojson(area: MultiPolygon, slide_id: str, bounds_px0: Box) -> str:
    """Write outlines as a GeoJSON FeatureCollection in QuPath's frame, one annotation per piece of tissue.

    Parameters
    ----------
    area : MultiPolygon
        Outlines in level-0 pixels.
    slide_id : str
        The slide; part of the annotations' ids.
    bounds_px0 : (int, int, int, int)
        Scanned part (x, y, width, height) of the slide: the origin of QuPath's frame.

    Returns
    -------
    str
        The text, the same for the same arguments.
    """
    features = []
    for number, piece in enumerate(area.geoms):
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{slide_id}/{number}/{piece.wkt}")
        properties = {"objectType": "annotation", "classification": _TISSUE, "isLocked": False}
        geometry = mapping(to_qupath_frame(piece, bounds_px0))
        features.append({"type": "Feature", "id": str(identity), "geometry": geometry, "properties": properties})
    lines = ",\n".join(json.dumps(feature, separators=(",", ":")) for feature in features)
    return f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'
