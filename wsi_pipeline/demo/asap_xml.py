"""Outlines in ASAP's format as in CAMELYON16: groups _0 and _1 are tumour, _2 are holes in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..artifacts import write_text
from ..types import Float64

_COLOURS = {"_0": "#00ff00", "_1": "#00ff00", "_2": "#ff0000"}


def asap_xml(tumour_px0: Sequence[Float64], holes_px0: Sequence[Float64] = ()) -> str:
    """Format outlines as ASAP XML.

    Parameters
    ----------
    tumour_px0 : sequence of ndarray of float64, (n, 2)
        Vertices of each lesion in level-0 pixels; the first becomes group ``_0``, the others ``_1``.
    holes_px0 : sequence of ndarray of float64, (n, 2)
        Vertices of each hole; group ``_2``.

    Returns
    -------
    str
        The XML.
    """
    outlines = [("_0" if i == 0 else "_1", outline) for i, outline in enumerate(tumour_px0)]
    outlines += [("_2", outline) for outline in holes_px0]
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for i, (group, outline) in enumerate(outlines):
        lines.append(f'\t\t<Annotation Name="Annotation {i}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">')
        lines.append("\t\t\t<Coordinates>")
        for order, (x, y) in enumerate(outline):
            lines.append(f'\t\t\t\t<Coordinate Order="{order}" X="{x:.2f}" Y="{y:.2f}" />')
        lines += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    for group in sorted({group for group, _ in outlines}):
        lines.append(f'\t\t<Group Name="{group}" PartOfGroup="None" Color="{_COLOURS[group]}">')
        lines += ["\t\t\t<Attributes />", "\t\t</Group>"]
    lines += ["\t</AnnotationGroups>", "</ASAP_Annotations>", ""]
    return "\n".join(lines)


def write_asap(path: Path, tumour_px0: Sequence[Float64], holes_px0: Sequence[Float64] = ()) -> None:
    """Write outlines as ASAP XML (see ``asap_xml``), and create the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, asap_xml(tumour_px0, holes_px0))
