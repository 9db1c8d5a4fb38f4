"""From dye densities to colours, by the law of Beer and Lambert.

The dyes' colours lie between the vectors that Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 23, 2001) and
Macenko et al. (ISBI 2009) published; where between them, how strong, and how bright the lamp was, is each slide's own.
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
    """How one slide was stained and scanned."""

    haematoxylin_od: tuple[float, float, float]  # of one unit of dye, (R, G, B)
    eosin_od: tuple[float, float, float]
    light: tuple[float, float, float]  # of empty glass, 0..1

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Stain:
        """A stain as laboratories differ: strengths by a fifth, hues, and a lamp a few per cent off white."""
        mixed = []
        for pair in (_HAEMATOXYLIN, _EOSIN):
            share = rng.uniform(0, 1)
            vector = (1 - share) * pair[0] + share * pair[1]
            strength = float(np.exp(np.clip(rng.normal(0, 0.17), -0.35, 0.35)))
            mixed.append(tuple(float(v) for v in vector / np.linalg.norm(vector) * strength))
        light = np.clip(rng.uniform(0.945, 0.985) + rng.normal(0, 0.006, 3), 0.9, 0.995)
        return cls(mixed[0], mixed[1], (float(light[0]), float(light[1]), float(light[2])))

    def table(self) -> np.ndarray:
        """(65536,) uint32: for 256 * haematoxylin + eosin density the bytes R, G, B, 0."""
        density = np.arange(256) / PER_OD
        od = np.multiply.outer(density, self.haematoxylin_od)[:, None] + np.multiply.outer(density, self.eosin_od)
        colour = np.zeros((256, 256, 4), np.uint8)
        colour[..., :3] = np.rint(255 * np.asarray(self.light) * 10.0**-od)
        return np.ascontiguousarray(colour).view(np.uint32).ravel()


def coloured(haematoxylin: UInt8, eosin: UInt8, table: np.ndarray, gain: UInt8) -> UInt8:
    """(h, w, 3) colours of two density pictures; ``gain`` / 256 is the light that reaches each pixel."""
    index = haematoxylin.astype(np.uint16) << 8 | eosin
    rgb = table[index].view(np.uint8).reshape(*index.shape, 4)[..., :3].astype(np.uint16)
    return np.asarray((rgb * gain[..., None]) >> 8, np.uint8)


def inked(rgb: UInt8, ink: Float32, pen: str) -> UInt8:
    """``rgb`` (h, w, 3) seen through felt-tip ink of strength ``ink`` (h, w)."""
    od: Float64 = np.asarray(_PEN_OD[pen])
    return np.asarray(rgb * 10.0 ** -(ink[..., None] * od), np.uint8)
