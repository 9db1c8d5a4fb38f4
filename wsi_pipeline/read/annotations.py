"""Annotations drawn on a slide: GeoJSON (QuPath) or ASAP XML (CAMELYON), as shapes in level-0 pixels."""

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

# CAMELYON16's group of holes in a tumour, its name in other ASAP files, and QuPath's class for regions to ignore.
EXCLUSIONS = ("_2", "Exclusion", "Ignore*")

_OUTLINES = {"Polygon", "Spline", "Rectangle"}  # ASAP writes the vertices of all three in order around the region


@dataclass(frozen=True, eq=False)
class Annotation:
    """The annotated regions of one slide.

    Attributes
    ----------
    regions : tuple of (str, BaseGeometry)
        Class name ("" without a class) and Polygon or MultiPolygon in level-0 pixels.
    notes : tuple of str
        The regions that were repaired or left out, and why.
    """

    regions: tuple[tuple[str, BaseGeometry], ...]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names that occur, sorted; "" for regions without a class."""
        return tuple(sorted({name for name, _ in self.regions}))

    def area(self, classes: Sequence[str] | None = None, exclude: Sequence[str] = EXCLUSIONS) -> MultiPolygon:
        """Union of the regions of some classes, minus the excluded ones.

        Parameters
        ----------
        classes : sequence of str, optional
            Classes to include, compared without regard to case; default: all.
        exclude : sequence of str
            Classes to subtract; a class in ``classes`` is not subtracted.

        Returns
        -------
        MultiPolygon
            The area in level-0 pixels, possibly empty.
        """
        included = None if classes is None else {c.casefold() for c in classes}
        excluded = {c.casefold() for c in exclude} - (included or set())
        inside, outside = [], []
        for name, region in self.regions:
            if name.casefold() in excluded:
                outside.append(region)
            elif included is None or name.casefold() in included:
                inside.append(region)
        return _polygons(shapely.difference(shapely.union_all(inside), shapely.union_all(outside)))


def read_annotation(path: str | os.PathLike[str], bounds_px0: Box = (0, 0, 0, 0)) -> Annotation:
    """Read GeoJSON or ASAP XML, whichever the file contains.

    Parameters
    ----------
    path : str or os.PathLike
        GeoJSON in QuPath's frame, or ASAP XML in the frame of the full slide.
    bounds_px0 : (int, int, int, int)
        Scanned part (x, y, width, height) of the slide: the origin of QuPath's frame.

    Returns
    -------
    Annotation
        The regions in level-0 pixels; invalid outlines are repaired and listed in ``notes``.

    Raises
    ------
    ConfigError
        The file cannot be used.
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
    """(group, outline) of each annotation. Dots and rulers become points."""
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
