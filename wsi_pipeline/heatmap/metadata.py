"""What a pyramid says of itself to other programs: NGFF's ``multiscales`` and ``omero``, OME-XML, our own block.

NGFF 0.4: https://ngff.openmicroscopy.org/0.4/ and 0.5: https://ngff.openmicroscopy.org/0.5/. QuPath takes pixel size,
channel names and colours from the OME-XML alone; napari ignores the translation; vizarr needs every window.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..types import Explanation, Float32, PatchGrid, Unit

# Okabe and Ito's colours, told apart by colour-blind readers too (Okabe & Ito 2008, "Color universal design").
COLORS = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "FFFFFF")
# One of these, in this order, is shown first: they are for one class, and large where the evidence is.
PRIMARY_METHODS = ("contribution", "instance", "attention")
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


@dataclass(frozen=True)
class Channel:
    """One map of the pyramid. ``window``: the values at which a display's colours begin and end."""

    label: str
    model: str
    method: str
    target: str
    unit: Unit
    signed: bool
    color: str  # RRGGBB
    extent: tuple[float, float]  # smallest and largest value; symmetric about 0 if signed
    window: tuple[float, float]
    aupc: float | None = None  # of the method on validation slides, lower is more faithful; None: not measured
    selected: bool = False  # whether that is why the method is here


def channels_of(explanations: Sequence[Explanation]) -> tuple[Channel, ...]:
    """The channels of a pyramid, in the order of its explanations."""
    return tuple(_channel(e, COLORS[i % len(COLORS)]) for i, e in enumerate(explanations))


def primary(methods: Sequence[tuple[str, str]], selected: Sequence[bool] = ()) -> int:
    """Which of the (model, method) is shown first: of the first model, the one that was ``selected`` by measurement.

    Else the first of ``PRIMARY_METHODS`` there is.
    """
    first_model = methods[0][0]
    for i, (model, picked) in enumerate(zip((model for model, _ in methods), selected, strict=False)):
        if picked and model == first_model:
            return i
    for method in PRIMARY_METHODS:
        if (first_model, method) in methods:
            return methods.index((first_model, method))
    return 0


def display_range(scores: Float32, unit: Unit, signed: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """(smallest, largest) and the (start, end) of a display, of the finite scores; never empty, never NaN.

    Signed: [-a, a]. Probabilities and shares: [0, 1]. Else the 1st and 99th percentile: one patch does not decide.
    """
    finite = scores[np.isfinite(scores)].astype(np.float64)
    if finite.size == 0:
        finite = np.zeros(1)
    if signed:
        largest, end = np.abs(finite).max(), np.percentile(np.abs(finite), 99)
        a = largest if largest > 0 else 1.0
        b = end if end > 0 else a
        return (-float(a), float(a)), (-float(b), float(b))
    if unit in ("probability", "share"):
        return (0.0, 1.0), (0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if low == high:  # one value everywhere: the display begins or ends at 0
        low, high = min(low, 0.0), max(high, 0.0) or float(low == 0)
        return (low, high), (low, high)
    start, end = (float(v) for v in np.percentile(finite, (1, 99)))
    return (low, high), ((start, end) if start < end else (low, high))


def multiscales(name: str, mpp: tuple[float, float], cell_px0: int, levels: int) -> dict[str, Any]:
    """NGFF's description of the levels. Pixel centres: level l's first cell is centred on its 2^l x 2^l cells."""
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
    """Display settings; the primary channel alone is switched on."""
    first = primary([(c.model, c.method) for c in channels], [c.selected for c in channels])
    shown = [
        {
            "label": c.label,
            "color": c.color,
            "active": i == first,
            "window": {"min": c.extent[0], "max": c.extent[1], "start": c.window[0], "end": c.window[1]},
        }
        for i, c in enumerate(channels)
    ]
    return {"name": name, "channels": shown, "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"}}


def own_block(grid: PatchGrid, cell_px0: int, channels: Sequence[Channel]) -> dict[str, Any]:
    """What no standard has room for: where the values come from."""
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
    """As JSON has it; what is not known is left out, as some readers stumble over null."""
    known = {name: value for name, value in asdict(channel).items() if value is not None}
    return known | {"extent": list(channel.extent), "window": list(channel.window)}


def channels_from(block: dict[str, Any]) -> tuple[Channel, ...]:
    """The channels back from ``own_block``'s result. Raises ``KeyError`` or ``TypeError`` where it is another's."""
    return tuple(
        Channel(**{**c, "extent": tuple(c["extent"]), "window": tuple(c["window"])}) for c in block["channels"]
    )


def ome_xml(
    name: str, shape: tuple[int, int], mpp: tuple[float, float], cell_px0: int, channels: Sequence[Channel]
) -> bytes:
    """OME/METADATA.ome.xml of the largest level, (rows, columns)."""
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
    """RRGGBB, opaque, as OME-XML's signed 32-bit RGBA."""
    value = int(color + "FF", 16)
    return value - 2**32 if value >= 2**31 else value


def _channel(explanation: Explanation, color: str) -> Channel:
    extent, window = display_range(explanation.scores, explanation.unit, explanation.signed)
    e = explanation
    return Channel(e.label, e.model, e.method, e.target, e.unit, e.signed, color, extent, window, e.aupc, e.selected)


def _xml_text(text: str) -> str:
    """``text`` without the control characters that XML 1.0 has no way to write."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
