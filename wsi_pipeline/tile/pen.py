"""Felt-pen ink, told from stained tissue by which light it takes away.

In optical density (OD = -log10 of the transmitted share, per channel; Beer-Lambert), the dyes of histology take green
away most: haematoxylin about (0.65, 0.70, 0.29) in (R, G, B), eosin (0.07, 0.99, 0.11) (Ruifrok and Johnston 2001),
DAB blue. So
- blue and green ink take away clearly more red than green: no stain does;
- red ink takes away hardly any red, and blue nearly as much as green: eosin and blood leave more blue;
- black ink takes away all three alike, and much of each.

A stroke is found by its clear parts and followed into its pale and overlaid ones. Pieces smaller than
``MIN_STROKE_UM2`` (pigment, dust, inked margins) are left to the rest of the detector. A large lake of fresh blood
or of coal dust may pass for ink: name the colours to look for where that matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..errors import ConfigError
from ..types import Bool, Float32, UInt8
from .clean import dilate, drop_small

COLOURS = ("blue", "green", "red", "black")
MIN_STROKE_UM2 = 5_000.0


def ink(rgb: UInt8, mpp: tuple[float, float], colours: Sequence[str] = COLOURS, margin_um: float = 40.0) -> Bool:
    """Where ``rgb`` (h, w, 3) at ``mpp`` µm per pixel shows ink of these ``colours``, grown by ``margin_um``; (h, w).

    Raises ``ConfigError`` for a colour that is not known.
    """
    unknown = [c for c in colours if c not in COLOURS]
    if unknown:
        raise ConfigError(f"there is no pen colour {unknown[0]!r}; known: {', '.join(COLOURS)}")
    od = -np.log10(np.clip(np.moveaxis(rgb, 2, 0), 1, 255).astype(np.float32) / 255)  # (3, h, w)
    found = np.zeros(rgb.shape[:2], bool)
    for colour in colours:
        clear, pale = _strokes(od, colour)
        clear = drop_small(clear, MIN_STROKE_UM2 / (mpp[0] * mpp[1]))
        found |= ndimage.binary_propagation(clear, mask=clear | pale)
    return dilate(found, (margin_um / mpp[0], margin_um / mpp[1]))


def _strokes(od: Float32, colour: str) -> tuple[Bool, Bool]:
    """From ``od`` (3, h, w), twice (h, w): what is surely this ink, and what may be where it touches that."""
    red, green, blue = od
    if colour == "blue":  # over eosin, which takes away green, only the clear blue light still tells
        on_glass = (red - green > 0.12) & (red > 1.3 * green)
        clear = on_glass | ((red > 0.7) & (red > 1.05 * green) & (blue < 0.33 * green))
        pale = (red - green > 0.06) | ((red > 0.5) & (red > 0.95 * green) & (blue < 0.33 * green))
        return clear & (blue < green), pale & (blue < green)
    if colour == "green":
        clear = (red - green > 0.12) & (red > 1.3 * green) & (blue >= green)
        return clear, red - green > 0.06
    if colour == "red":
        clear = (green > 0.4) & (red < 0.2 * green) & (blue > np.where(green > 0.8, 0.62, 0.75) * green)
        return clear, (green > 0.2) & (red < 0.28 * green) & (blue > 0.68 * green)
    most, least = od.max(axis=0), od.min(axis=0)
    clear = (least > 0.6) & (least > np.where(least > 0.8, 0.75, 0.85) * most)
    return clear, (least > 0.3) & (least > np.where(least > 0.7, 0.6, 0.75) * most)
