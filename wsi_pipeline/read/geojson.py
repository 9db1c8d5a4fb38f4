"""GeoJSON as QuPath reads and writes it: regions with a class name, in QuPath's frame.

QuPath's frame starts at the slide's bounds (``openslide.bounds-x/y``), in its display and in its files. The first two
functions are the only ones that convert between that frame and ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from ..types import Box


def from_qupath_frame(geometry: BaseGeometry, bounds_px0: Box) -> BaseGeometry:
    """Move a geometry from QuPath's frame to level-0 pixels of the full slide; ``bounds_px0`` are the slide's."""
    return _moved(geometry, bounds_px0[0], bounds_px0[1])


def to_qupath_frame(geometry: BaseGeometry, bounds_px0: Box) -> BaseGeometry:
    """Move a geometry from level-0 pixels of the full slide to QuPath's frame; ``bounds_px0`` are the slide's."""
    return _moved(geometry, -bounds_px0[0], -bounds_px0[1])


def parse_geojson(text: str) -> Iterator[tuple[str, BaseGeometry]]:
    """Parse GeoJSON, coordinates as written.

    Parameters
    ----------
    text : str
        A FeatureCollection, a Feature, a bare geometry, or QuPath's plain list of features.

    Yields
    ------
    str, BaseGeometry
        Class name ("" without a class) and geometry of each feature.

    Raises
    ------
    ValueError
        The text is none of these, or a coordinate is not a finite number.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    for number, feature in enumerate(_features(data), 1):
        geometry = feature.get("geometry")
        if geometry is None:
            continue
        try:
            drawn = shape(geometry)
        except (shapely.errors.ShapelyError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the geometry of feature {number} cannot be read ({error})") from error
        if not np.isfinite(shapely.get_coordinates(drawn)).all():
            raise ValueError(f"feature {number} has a coordinate that is not a finite number")
        yield _class_name(feature.get("properties")), drawn


def _features(data: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, list):
        for item in data:
            yield from _features(item)
    elif not isinstance(data, dict):
        raise ValueError("it contains no GeoJSON features")
    elif data.get("type") == "FeatureCollection" and isinstance(data.get("features"), list):
        yield from _features(data["features"])
    elif data.get("type") == "Feature":
        yield data
    elif "coordinates" in data or "geometries" in data:
        yield {"geometry": data}
    else:
        raise ValueError(f"it contains {data.get('type', 'other data')!r} instead of GeoJSON features")


def _class_name(properties: object) -> str:
    """``classification.name``; QuPath writes a derived class ("Tumor: Positive") as a list of names."""
    classification = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(classification, dict):
        names = classification.get("names")
        return ": ".join(map(str, names)) if isinstance(names, list) else str(classification.get("name") or "")
    return classification if isinstance(classification, str) else ""


def _moved(geometry: BaseGeometry, x: int, y: int) -> BaseGeometry:
    return affinity.translate(geometry, x, y) if (x, y) != (0, 0) else geometry
