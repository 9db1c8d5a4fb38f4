"""Detection of pen ink, distinguished from stained tissue by the light that it absorbs.

In optical density (OD = -log10 of the transmitted fraction, per channel; Beer-Lambert), the dyes of histology absorb
green most: haematoxylin about (0.65, 0.70, 0.29) in (R, G, B), eosin (0.07, 0.99, 0.11) (Ruifrok and Johnston 2001);
DAB absorbs blue most. Therefore

- blue and green ink absorb clearly more red than green, which no stain does;
- red ink absorbs hardly any red, and blue nearly as much as green, while eosin and blood absorb less blue;
- black ink absorbs all three alike, and strongly.

A stroke is found by its clear parts and extended into its pale and overlaid ones. Pieces smaller than
``MIN_STROKE_UM2`` (pigment, dust, inked margins) are left to the rest of the detector. A large pool of fresh blood
or of coal dust may be mistaken for ink: restrict the colours if that matters.
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
    """Find pen ink on an overview of a slide.

    Parameters
    ----------
    rgb : ndarray of uint8, (h, w, 3)
        The overview.
    mpp : (float, float)
        Width and height of its pixels in µm.
    colours : sequence of {"blue", "green", "red", "black"}
        Inks to find.
    margin_um : float
        The ink is dilated by this margin, µm.

    Returns
    -------
    ndarray of bool, (h, w)
        True on ink.

    Raises
    ------
    ConfigError
        A colour is unknown.
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
    """From ``od`` (3, h, w), two masks (h, w): pixels surely of this ink, and pixels that are if they touch those."""
    red, green, blue = od
    if colour == "blue":  # over eosin, which absorbs green, only the transmitted blue light is left as a criterion
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
