"""Arrays -> small pictures as data URIs, so that the report is one file."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from ..types import Box, Float32, UInt8

_QUALITY = 82
# Perceptually uniform, readable without colour vision, and far from the pinks and purples of H&E.
UNSIGNED, SIGNED = "viridis", "RdBu_r"


def jpeg_uri(rgb: UInt8) -> str:
    """(h, w, 3) as a JPEG data URI."""
    return _uri(Image.fromarray(rgb), "JPEG", quality=_QUALITY, optimize=True)


def map_uri(values: Float32, window: tuple[float, float], signed: bool) -> str:
    """(rows, columns) coloured between the ends of ``window``, transparent where NaN, as a PNG data URI."""
    start, end = window
    there = np.isfinite(values)
    share = np.clip((np.where(there, values, start) - start) / (end - start), 0.0, 1.0)
    index = np.where(there, 1 + np.rint(share * 254), 0).astype(np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), palette(signed)]).tobytes())
    return _uri(picture, "PNG", optimize=True, transparency=0)


def bar_uri(signed: bool) -> str:
    """The colours from low to high, one pixel tall."""
    return _uri(Image.fromarray(palette(signed)[None]), "PNG", optimize=True)


def palette(signed: bool) -> UInt8:
    """(255, 3) colours from low to high; signed ones are lightest in the middle."""
    colors = matplotlib.colormaps[SIGNED if signed else UNSIGNED](np.linspace(0, 1, 255))[:, :3]
    rounded: UInt8 = np.rint(colors * 255).astype(np.uint8)
    return rounded


def crop(rgb: UInt8, side_px0: tuple[float, float], box_px0: Box) -> tuple[UInt8, tuple[float, float, float, float]]:
    """The pixels of an overview that touch ``box_px0``, and where they lie: (x, y, width, height) in px0."""
    (x, y, width, height), (side_x, side_y) = box_px0, side_px0
    left, top = int(x // side_x), int(y // side_y)
    right, bottom = int(-(-(x + width) // side_x)), int(-(-(y + height) // side_y))
    part = rgb[top:bottom, left:right]
    return part, (left * side_x, top * side_y, part.shape[1] * side_x, part.shape[0] * side_y)


def _uri(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
