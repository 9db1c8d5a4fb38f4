"""Metadata of a pyramid for other programs: NGFF's ``multiscales`` and ``omero``, OME-XML, and a block of our own.

NGFF 0.4: https://ngff.openmicroscopy.org/0.4/ and 0.5: https://ngff.openmicroscopy.org/0.5/. QuPath reads pixel size,
channel names and colours from the OME-XML alone; napari ignores the translation; vizarr needs a window per channel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..types import Explanation, Float32, PatchGrid, Unit

# Colours that colour-blind readers can distinguish too (Okabe & Ito 2008, "Color universal design").
COLORS = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "FFFFFF")
# The methods that are shown first, in this order of preference: high scores of these are evidence for the class.
PRIMARY_METHODS = ("contribution", "instance", "attention")
_ULPS = 4  # float32 scores that differ by no more units in the last place are equal up to rounding
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


@dataclass(frozen=True)
class Channel:
    """One map of the pyramid, with the range of its display."""

    label: str
    model: str
    method: str
    target: str
    unit: Unit
    signed: bool
    color: str  # RRGGBB
    extent: tuple[float, float]  # smallest and largest value; symmetric about 0 if signed
    window: tuple[float, float]  # the values of the first and last colour
    aupc: float | None = None  # of the method on validation slides, lower is more faithful; None: not measured
    selected: bool = False  # whether the method was selected by its aupc


def channels_of(explanations: Sequence[Explanation]) -> tuple[Channel, ...]:
    """The channels of a pyramid, in the order of its explanations."""
    return tuple(_channel(e, COLORS[i % len(COLORS)]) for i, e in enumerate(explanations))


def primary(methods: Sequence[tuple[str, str]], selected: Sequence[bool] = ()) -> int:
    """Index of the map that is shown first.

    Parameters
    ----------
    methods : sequence of (model, method)
    selected : sequence of bool, optional
        Whether each method was selected by measurement.

    Returns
    -------
    int
        Of the first model, the selected method, else the first available of ``PRIMARY_METHODS``, else 0.
    """
    first_model = methods[0][0]
    for i, (model, is_selected) in enumerate(zip((model for model, _ in methods), selected, strict=False)):
        if is_selected and model == first_model:
            return i
    for method in PRIMARY_METHODS:
        if (first_model, method) in methods:
            return methods.index((first_model, method))
    return 0


def is_constant(values: Float32) -> bool:
    """Whether all finite values are equal, up to the rounding of float32; False where there is none."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and np.ptp(finite) <= _ULPS * np.spacing(np.abs(finite).max().astype(np.float32)))


def display_range(scores: Float32, unit: Unit, signed: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Range of the scores and of their display, from the finite scores; never empty, never NaN.

    Parameters
    ----------
    scores : array (N,)
    unit : Unit
    signed : bool

    Returns
    -------
    extent : (float, float)
        Smallest and largest score; [-a, a] if signed; [0, 1] for probabilities and fractions.
    window : (float, float)
        Scores of the first and last colour. Like the extent for probabilities and fractions, else cut at the 1st and
        99th percentile (signed: the 99th of the absolute scores), so that a single patch does not determine it. Of a
        constant map of any other unsigned unit (attention, value, risk, distance), whose scores mean something only
        relative to each other, all patches get the first colour: it is not evidence.
    """
    finite = scores[np.isfinite(scores)].astype(np.float64)
    if finite.size == 0:
        finite = np.zeros(1)
    if signed:
        largest, end = np.abs(finite).max(), np.percentile(np.abs(finite), 99)
        a = largest if largest > 0 else 1.0
        b = end if end > 0 else a
        return (-float(a), float(a)), (-float(b), float(b))
    if unit in ("probability", "fraction"):
        return (0.0, 1.0), (0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if is_constant(finite.astype(np.float32)):
        end = high + (abs(high) or 1.0)
        return (low, end), (high, end)
    start, end = (float(v) for v in np.percentile(finite, (1, 99)))
    return (low, high), ((start, end) if start < end else (low, high))


def multiscales(name: str, mpp: tuple[float, float], cell_px0: int, levels: int) -> dict[str, Any]:
    """NGFF's description of the levels.

    Parameters
    ----------
    name : str
    mpp : (float, float)
        µm per level-0 pixel, (x, y).
    cell_px0 : int
        Side of a cell of the finest level in level-0 pixels.
    levels : int

    Returns
    -------
    dict
        Scales in µm; translations refer to pixel centres: the first cell of level l is centred on the 2^l x 2^l cells
        of level 0 that it covers.
    """
    datasets = []
    for level in range(levels):
        side = cell_px0 * 2**level
        scale = [1.0, mpp[1] * side, mpp[0] * side]
        translation = [0.0, mpp[1] * (side - 1) / 2, mpp[0] * (side - 1) / 2]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    return {"name": name, "axes": axes, "datasets": datasets, "type": "nanmean"}


def omero(name: str, channels: Sequence[Channel]) -> dict[str, Any]:
    """Display settings of NGFF's ``omero``; only the primary channel is active."""
    first = primary([(c.model, c.method) for c in channels], [c.selected for c in channels])
    settings = [
        {
            "label": c.label,
            "color": c.color,
            "active": i == first,
            "window": {"min": c.extent[0], "max": c.extent[1], "start": c.window[0], "end": c.window[1]},
        }
        for i, c in enumerate(channels)
    ]
    return {"name": name, "channels": settings, "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"}}


def own_block(grid: PatchGrid, cell_px0: int, channels: Sequence[Channel]) -> dict[str, Any]:
    """What the standards do not cover: the slide, the grid and the origin of each channel."""
    return {
        "slide_id": grid.slide_id,
        "slide_size_px0": list(grid.slide_size_px0),
        "bounds_px0": list(grid.bounds_px0),
        "mpp": list(grid.mpp),
        "cell_px0": cell_px0,
        "patches": len(grid),
        "patch_side_px0": list(grid.side_px0),
        "patch_stride_px0": list(grid.stride_px0),
        "target_mpp": grid.target_mpp,
        "channels": [_plain(c) for c in channels],
    }


def _plain(channel: Channel) -> dict[str, Any]:
    """For JSON; absent values are left out, since some readers fail on null."""
    present = {name: value for name, value in asdict(channel).items() if value is not None}
    return present | {"extent": list(channel.extent), "window": list(channel.window)}


def channels_from(block: dict[str, Any]) -> tuple[Channel, ...]:
    """The channels from the result of ``own_block``. Raises ``KeyError`` or ``TypeError`` for any other dict."""
    return tuple(
        Channel(**{**c, "extent": tuple(c["extent"]), "window": tuple(c["window"])}) for c in block["channels"]
    )


def ome_xml(
    name: str, shape: tuple[int, int], mpp: tuple[float, float], cell_px0: int, channels: Sequence[Channel]
) -> bytes:
    """The text of OME/METADATA.ome.xml.

    Parameters
    ----------
    name : str
    shape : (int, int)
        (rows, columns) of the finest level.
    mpp : (float, float)
        µm per level-0 pixel, (x, y).
    cell_px0 : int
        Side of a cell in level-0 pixels.
    channels : sequence of Channel
    """
    ElementTree.register_namespace("", _OME)
    root = ElementTree.Element(f"{{{_OME}}}OME")
    image = ElementTree.SubElement(root, f"{{{_OME}}}Image", ID="Image:0", Name=_xml_text(name))
    pixels = ElementTree.SubElement(
        image,
        f"{{{_OME}}}Pixels",
        ID="Pixels:0",
        DimensionOrder="XYZCT",
        Type="float",
        BigEndian="false",
        SizeX=str(shape[1]),
        SizeY=str(shape[0]),
        SizeZ="1",
        SizeC=str(len(channels)),
        SizeT="1",
        PhysicalSizeX=repr(mpp[0] * cell_px0),
        PhysicalSizeXUnit="µm",
        PhysicalSizeY=repr(mpp[1] * cell_px0),
        PhysicalSizeYUnit="µm",
    )
    for i, channel in enumerate(channels):
        ElementTree.SubElement(
            pixels,
            f"{{{_OME}}}Channel",
            ID=f"Channel:0:{i}",
            Name=_xml_text(channel.label),
            Color=str(signed_rgba(channel.color)),
            SamplesPerPixel="1",
        )
    ElementTree.SubElement(pixels, f"{{{_OME}}}MetadataOnly")
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text + b"\n"


def signed_rgba(color: str) -> int:
    """RRGGBB, opaque, as OME-XML's signed 32-bit RGBA.

    >>> signed_rgba("0000FF")
    65535
    """
    value = int(color + "FF", 16)
    return value - 2**32 if value >= 2**31 else value


def _channel(explanation: Explanation, color: str) -> Channel:
    extent, window = display_range(explanation.scores, explanation.unit, explanation.signed)
    e = explanation
    return Channel(e.label, e.model, e.method, e.target, e.unit, e.signed, color, extent, window, e.aupc, e.selected)


def _xml_text(text: str) -> str:
    """``text`` with the characters that XML 1.0 cannot represent replaced."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
