"""What people drew on a slide: GeoJSON (QuPath) or ASAP XML (CAMELYON), as shapes in level-0 pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from ..errors import ConfigError
from ..types import Box
from .geojson import from_qupath_frame, parse_geojson

# CAMELYON16's group of holes in a tumour, its name in other ASAP files, and QuPath's class for what does not count.
EXCLUSIONS = ("_2", "Exclusion", "Ignore*")

_OUTLINES = {"Polygon", "Spline", "Rectangle"}  # ASAP writes the points of all three in order around the region


@dataclass(frozen=True, eq=False)
class Annotation:
    """The regions of one slide; ``notes`` says what had to be repaired or left out."""

    regions: tuple[tuple[str, BaseGeometry], ...]  # (class name, Polygon or MultiPolygon in px0)
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names that occur, sorted; "" where a region has none."""
        return tuple(sorted({name for name, _ in self.regions}))

    def area(self, classes: Sequence[str] | None = None, exclude: Sequence[str] = EXCLUSIONS) -> MultiPolygon:
        """Union of the regions of ``classes`` (default: all), minus those of ``exclude``, in px0.

        Class names are compared without regard to case. A class that is asked for is not excluded.
        """
        wanted = None if classes is None else {c.casefold() for c in classes}
        excluded = {c.casefold() for c in exclude} - (wanted or set())
        inside, outside = [], []
        for name, region in self.regions:
            if name.casefold() in excluded:
                outside.append(region)
            elif wanted is None or name.casefold() in wanted:
                inside.append(region)
        return _polygons(shapely.difference(shapely.union_all(inside), shapely.union_all(outside)))


def read_annotation(path: str | os.PathLike[str], bounds_px0: Box = (0, 0, 0, 0)) -> Annotation:
    """Read GeoJSON or ASAP XML, whichever the file holds.

    GeoJSON is in QuPath's frame, which starts at ``bounds_px0``; ASAP counts from the full slide's corner. Invalid
    outlines are made valid (``notes`` says which). Raises ``ConfigError`` where the file cannot be used.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the annotation {path}: {error.strerror}; check its path") from error
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    try:
        if start == b"<":
            return _clean(_parse_asap(data))
        if start in (b"{", b"["):
            shapes = parse_geojson(data.decode("utf-8-sig"))
            return _clean((name, from_qupath_frame(drawn, bounds_px0)) for name, drawn in shapes)
    except (ValueError, ParseError, DefusedXmlException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the annotation {path} cannot be used: {reason}; export it again") from error
    raise ConfigError(f"the annotation {path} is neither GeoJSON nor ASAP XML; export it as one of these")


def _parse_asap(data: bytes) -> Iterator[tuple[str, BaseGeometry]]:
    """(group, outline) of each annotation. Dots and rulers come as points."""
    root: Element = fromstring(data)
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its root is <{root.tag}>, not <ASAP_Annotations>")
    for element in root.iter("Annotation"):
        points = sorted(element.iter("Coordinate"), key=lambda c: int(float(c.get("Order", "0"))))
        xy_px0 = [(_coordinate(c, "X"), _coordinate(c, "Y")) for c in points]
        group = element.get("PartOfGroup") or ""
        outline = element.get("Type", "Polygon") in _OUTLINES and len(xy_px0) > 2
        yield "" if group == "None" else group, Polygon(xy_px0) if outline else shapely.MultiPoint(xy_px0)


def _coordinate(element: Element, name: str) -> float:
    value = float(element.get(name) or "nan")
    if not abs(value) < float("inf"):
        raise ValueError(f"a coordinate has no {name}")
    return value


def _clean(shapes: Iterator[tuple[str, BaseGeometry]]) -> Annotation:
    regions, notes = [], []
    for number, (name, drawn) in enumerate(shapes, 1):
        whole = drawn if drawn.is_valid else shapely.make_valid(drawn)
        area = _polygons(whole)
        if area.is_empty:
            notes.append(f"region {number} ({name or 'no class'}): a {drawn.geom_type} without area, left out")
            continue
        if whole is not drawn:
            notes.append(
                f"region {number} ({name or 'no class'}): invalid ({shapely.is_valid_reason(drawn)}), repaired"
            )
        regions.append((name, area))
    return Annotation(tuple(regions), tuple(notes))


def _polygons(geometry: BaseGeometry) -> MultiPolygon:
    """The parts of ``geometry`` that have an area."""
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection may hold multipolygons
    return MultiPolygon([p for p in parts if isinstance(p, Polygon) and not p.is_empty])
