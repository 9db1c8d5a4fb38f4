"""Quality-control image of a slide: shows at a glance whether tissue and patches are right."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry import MultiPolygon

from ..types import Box, PatchGrid, UInt8

LONGEST_PX = 1600
_TISSUE, _ROI, _UNREADABLE, _PATCH = (0, 160, 0), (0, 90, 255), (230, 0, 0), (255, 190, 0)
_LEGEND_PX = 28
_QUALITY = 85


@dataclass(frozen=True, eq=False)
class Overlay:
    """What is drawn over the slide. Tissue and region of interest are in level-0 pixels."""

    tissue: MultiPolygon
    roi: MultiPolygon | None
    grid: PatchGrid
    unreadable_px0: tuple[Box, ...]
    legend: str


def quality_picture(rgb: UInt8, side_px0: tuple[float, float], overlay: Overlay) -> bytes:
    """Draw patches (yellow), tissue (green), region of interest (blue) and unreadable regions (red) over an overview.

    Parameters
    ----------
    rgb : ndarray of uint8, (h, w, 3)
        The overview.
    side_px0 : (float, float)
        Width and height of its pixels in level-0 pixels.
    overlay : Overlay
        What to draw, and the legend below.

    Returns
    -------
    bytes
        A JPEG, the same for the same arguments.
    """
    height, width = rgb.shape[:2]
    tinted = Image.composite(
        Image.new("RGB", (width, height), _PATCH),
        Image.fromarray(rgb),
        _patch_layer((width, height), side_px0, overlay),
    )
    picture = Image.new("RGB", (width, height + _LEGEND_PX), (255, 255, 255))
    picture.paste(tinted)
    draw = ImageDraw.Draw(picture)
    for x, y, w, h in overlay.unreadable_px0:
        draw.rectangle(_corners((x, y), (w, h), side_px0), outline=_UNREADABLE, width=2)
    for area, colour in ((overlay.roi, _ROI), (overlay.tissue, _TISSUE)):
        for ring in shapely.get_rings(shapely.get_parts(area)) if area is not None else ():
            xy = shapely.get_coordinates(ring) / np.asarray(side_px0)
            draw.line([(float(a), float(b)) for a, b in xy], fill=colour, width=2)
    draw.rectangle((0, height, width, height + _LEGEND_PX), fill=(255, 255, 255))
    draw.text((6, height + 5), overlay.legend, fill=(0, 0, 0), font=ImageFont.load_default(15))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def read_quality_picture(path: Path) -> UInt8:
    """Read a picture of ``quality_picture`` without its legend: (h, w, 3), the whole slide. Raises ``OSError``."""
    with Image.open(path) as picture:
        rgb: UInt8 = np.asarray(picture.convert("RGB"))[:-_LEGEND_PX]
    return rgb


def _patch_layer(size: tuple[int, int], side_px0: tuple[float, float], overlay: Overlay) -> Image.Image:
    """Opacity of the patches' colour: a light tint, and stronger edges if the patches are large enough to see them."""
    layer = Image.new("L", size, 0)
    draw = ImageDraw.Draw(layer)
    side = overlay.grid.side_px0
    edge = 200 if side[0] / side_px0[0] > 5 else 60
    for x, y in overlay.grid.xy_px0.tolist():
        draw.rectangle(_corners((x, y), side, side_px0), fill=16, outline=edge)
    return layer


def _corners(
    xy_px0: tuple[float, float], size_px0: tuple[float, float], side_px0: tuple[float, float]
) -> tuple[int, int, int, int]:
    left, top = (round(c / s) for c, s in zip(xy_px0, side_px0, strict=True))
    right, bottom = (round((c + n) / s) for c, n, s in zip(xy_px0, size_px0, side_px0, strict=True))
    return left, top, max(right, left), max(bottom, top)
