"""Arrays as small pictures in data URIs, so that the report is a single file."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from ..types import Box, Float32, UInt8

_QUALITY = 82
# Perceptually uniform, readable without colour vision, and distinct from the pinks and purples of H&E.
UNSIGNED, SIGNED = "viridis", "RdBu_r"
_GREY = 170  # of a constant map


def jpeg_uri(rgb: UInt8) -> str:
    """An RGB picture (h, w, 3) as a JPEG data URI."""
    return _uri(Image.fromarray(rgb), "JPEG", quality=_QUALITY, optimize=True)


def map_uri(values: Float32, window: tuple[float, float], signed: bool, *, constant: bool = False) -> str:
    """Colour a map as a PNG data URI.

    Parameters
    ----------
    values : array (rows, columns)
        NaN is transparent.
    window : (float, float)
        Values of the first and last colour.
    signed : bool
        Use a diverging palette, lightest in the middle.
    constant : bool
        Draw all values in one grey, since a constant map is not evidence.
    """
    start, end = window
    defined = np.isfinite(values)
    fraction = np.clip((np.where(defined, values, start) - start) / (end - start), 0.0, 1.0)
    index = np.where(defined, 1 + np.rint(fraction * 254), 0).astype(np.uint8)
    picture = Image.fromarray(index)
    colors = np.full((255, 3), _GREY, np.uint8) if constant else palette(signed)
    picture.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), colors]).tobytes())
    return _uri(picture, "PNG", optimize=True, transparency=0)


def bar_uri(signed: bool) -> str:
    """The colours of a legend from low to high, one pixel high, as a PNG data URI."""
    return _uri(Image.fromarray(palette(signed)[None]), "PNG", optimize=True)


def palette(signed: bool) -> UInt8:
    """The colours (255, 3) from low to high; those of signed maps are lightest in the middle."""
    colors = matplotlib.colormaps[SIGNED if signed else UNSIGNED](np.linspace(0, 1, 255))[:, :3]
    rounded: UInt8 = np.rint(colors * 255).astype(np.uint8)
    return rounded


def crop(rgb: UInt8, side_px0: tuple[float, float], box_px0: Box) -> tuple[UInt8, tuple[float, float, float, float]]:
    """Crop an overview to a box.

    Parameters
    ----------
    rgb : array (h, w, 3)
    side_px0 : (float, float)
        Width and height of one of its pixels in level-0 pixels.
    box_px0 : (int, int, int, int)
        (x, y, width, height) in level-0 pixels.

    Returns
    -------
    rgb : array
        The pixels that touch the box.
    frame : (float, float, float, float)
        Their position, (x, y, width, height) in level-0 pixels.
    """
    (x, y, width, height), (side_x, side_y) = box_px0, side_px0
    left, top = int(x // side_x), int(y // side_y)
    right, bottom = int(-(-(x + width) // side_x)), int(-(-(y + height) // side_y))
    part = rgb[top:bottom, left:right]
    return part, (left * side_x, top * side_y, part.shape[1] * side_x, part.shape[0] * side_y)


def _uri(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
