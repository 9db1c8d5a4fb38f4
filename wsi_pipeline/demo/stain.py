"""Conversion of dye densities to colours by the Beer-Lambert law.

The dyes' colours lie between, or a little beyond, the stain vectors of Ruifrok and Johnston (Anal. Quant. Cytol.
Histol. 23, 2001) and of Macenko et al. (ISBI 2009). The position between them, the staining strength and the
brightness of the lamp vary between slides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import Float32, Float64, UInt8
from .nuclei import PER_OD

_HAEMATOXYLIN = np.array([[0.65, 0.70, 0.29], [0.56, 0.72, 0.41]])
_EOSIN = np.array([[0.09, 0.95, 0.28], [0.22, 0.80, 0.52]])
_PEN_OD = {
    "blue": (1.05, 0.62, 0.12),
    "green": (0.95, 0.25, 0.70),
    "red": (0.06, 0.85, 0.75),
    "black": (1.25, 1.25, 1.20),
}


@dataclass(frozen=True)
class Stain:
    """Staining and illumination of one slide."""

    haematoxylin_od: tuple[float, float, float]  # of one unit of dye, (R, G, B)
    eosin_od: tuple[float, float, float]
    light: tuple[float, float, float]  # of empty glass, 0..1

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Stain:
        """Draw a stain with the variation between laboratories: strength by a fifth, hue, lamp by a few per cent."""
        dyes = []
        for published in (_HAEMATOXYLIN, _EOSIN):
            weight = rng.uniform(-0.2, 1.2)
            vector = (1 - weight) * published[0] + weight * published[1]
            strength = np.exp(np.clip(rng.normal(0, 0.2), -0.4, 0.4))
            dyes.append(_three(vector / np.linalg.norm(vector) * strength))
        light = np.clip(rng.uniform(0.945, 0.985) + rng.normal(0, 0.006, 3), 0.9, 0.995)
        return cls(dyes[0], dyes[1], _three(light))

    def table(self) -> np.ndarray:
        """(65536,) uint32 lookup table: the bytes R, G, B, 0 at index 256 * haematoxylin + eosin density."""
        density = np.arange(256) / PER_OD
        od = np.multiply.outer(density, self.haematoxylin_od)[:, None] + np.multiply.outer(density, self.eosin_od)
        colour = np.zeros((256, 256, 4), np.uint8)
        colour[..., :3] = np.rint(255 * np.asarray(self.light) * 10.0**-od)
        return np.ascontiguousarray(colour).view(np.uint32).ravel()


def _three(values: Float64) -> tuple[float, float, float]:
    r, g, b = values.tolist()
    return r, g, b


def coloured(haematoxylin: UInt8, eosin: UInt8, table: np.ndarray, gain: UInt8) -> UInt8:
    """(h, w, 3) colours of two density images (h, w); ``gain`` / 256 is the illumination of each pixel."""
    index = haematoxylin.astype(np.uint16) << 8 | eosin
    rgb = table[index].view(np.uint8).reshape(*index.shape, 4)[..., :3].astype(np.uint16)
    return np.asarray((rgb * gain[..., None]) >> 8, np.uint8)


def inked(rgb: UInt8, ink: Float32, pen: str) -> UInt8:
    """``rgb`` (h, w, 3) seen through pen ink of strength ``ink`` (h, w)."""
    covered = ink > 0
    od = np.asarray(_PEN_OD[pen], np.float32)
    result = rgb.copy()
    result[covered] = rgb[covered] * np.float32(10) ** -(ink[covered][:, None] * od)
    return result
