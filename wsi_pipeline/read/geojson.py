"""GeoJSON as QuPath reads and writes it: regions with a class name, in QuPath's frame.

QuPath shows a slide from its bounds on (``openslide.bounds-x/y``), and so do the coordinates in its files. The two
functions at the end are the only place that moves between that frame and ours.
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
    """QuPath's coordinates -> level-0 pixels of the full slide."""
    return _moved(geometry, bounds_px0[0], bounds_px0[1])


def to_qupath_frame(geometry: BaseGeometry, bounds_px0: Box) -> BaseGeometry:
    """Level-0 pixels of the full slide -> QuPath's coordinates."""
    return _moved(geometry, -bounds_px0[0], -bounds_px0[1])


def parse_geojson(text: str) -> Iterator[tuple[str, BaseGeometry]]:
    """(class name, geometry) of each feature, as written; the class is "" where there is none.

    Takes a FeatureCollection, a Feature, a bare geometry, or QuPath's plain list of features. Raises ``ValueError``
    where the text is none of these.
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
            raise ValueError(f"feature {number} has a coordinate that is no number")
        yield _class_name(feature.get("properties")), drawn


def _features(data: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, list):
        for item in data:
            yield from _features(item)
    elif not isinstance(data, dict):
        raise ValueError("it holds no GeoJSON features")
    elif data.get("type") == "FeatureCollection" and isinstance(data.get("features"), list):
        yield from _features(data["features"])
    elif data.get("type") == "Feature":
        yield data
    elif "coordinates" in data or "geometries" in data:
        yield {"geometry": data}
    else:
        raise ValueError(f"it holds no GeoJSON features but {data.get('type', 'other data')!r}")


def _class_name(properties: object) -> str:
    """``classification.name``; QuPath writes a derived class ("Tumor: Positive") as a list of names."""
    classification = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(classification, dict):
        names = classification.get("names")
        return ": ".join(map(str, names)) if isinstance(names, list) else str(classification.get("name") or "")
    return classification if isinstance(classification, str) else ""


def _moved(geometry: BaseGeometry, x: int, y: int) -> BaseGeometry:
    return affinity.translate(geometry, x, y) if (x, y) != (0, 0) else geometry
