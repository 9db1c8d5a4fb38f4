"""Nuclei and cell bodies as small images of dye density, drawn once per slide and then stamped many times.

Densities are stored as uint8, with ``PER_OD`` steps per unit of optical density.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..types import Float32, Float64, UInt8
from .shapes import polar_reach, smooth_noise

MPP = 0.5  # the slides' µm per pixel
PER_OD = 100.0
ANGLES = 16  # orientations of an elongated nucleus, over half a turn


@dataclass(frozen=True)
class Look:
    """Appearance of a kind of nucleus. Lengths in µm, densities in haematoxylin OD."""

    length_um: tuple[float, float]  # smallest and largest
    slenderness: tuple[float, float]  # width / length
    density: tuple[float, float]
    roughness: float  # of the outline
    clumping: float  # relative strength of the chromatin's texture
    clump_um: float  # its scale
    rim: float = 0.0  # extra density of the membrane
    nucleoli: tuple[int, int] = (0, 0)
    nucleolus_um: float = 0.0
    turns: bool = True  # drawn in every orientation


LOOKS: Mapping[str, Look] = {
    "lymphocyte": Look((5.8, 7.6), (0.86, 1.0), (1.05, 1.45), 0.035, 0.22, 1.3, turns=False),
    "spindle": Look((9.0, 17.0), (0.2, 0.36), (0.75, 1.2), 0.05, 0.15, 1.0),
    "epithelial": Look((7.6, 10.0), (0.62, 0.85), (0.7, 1.05), 0.035, 0.18, 1.2, 0.1, (0, 1), 1.4),
    "tumour": Look((12.0, 22.0), (0.6, 0.95), (0.42, 0.88), 0.1, 0.24, 1.4, 0.4, (1, 2), 3.2),
}


def sprites(kind: str, count: int, rng: np.random.Generator) -> list[list[UInt8]]:
    """Draw density images of one kind of nucleus, indexed [variant][orientation]; round kinds have one orientation."""
    look = LOOKS[kind]
    angles = np.arange(ANGLES) * np.pi / ANGLES if look.turns else [0.0]
    library = []
    for _ in range(count):
        draw = _nucleus(look, rng)
        library.append([draw(float(a)) for a in angles])
    return library


def bodies(
    count: int, radius_um: tuple[float, float], density: float, roughness: float, rng: np.random.Generator
) -> list[UInt8]:
    """Draw cell bodies: soft irregular discs of dye."""
    library = []
    for _ in range(count):
        radius = rng.uniform(*radius_um) / MPP
        reach = _outline(roughness, rng)
        x, y = _raster(radius * 1.5)
        r, theta = np.hypot(x, y), np.arctan2(y, x)
        edge = _soft(radius * reach(theta) - r, 1.5)
        grain = 1 + 0.12 * smooth_noise((len(x), len(x)), 3.0, rng)
        library.append(_encode(density * edge * grain))
    return library


def _nucleus(look: Look, rng: np.random.Generator) -> Callable[[float], UInt8]:
    """One nucleus as a function of its orientation; its shape and texture stay the same."""
    half = rng.uniform(*look.length_um) / 2 / MPP
    slender = rng.uniform(*look.slenderness)
    density = rng.uniform(*look.density)
    reach = _outline(look.roughness, rng)
    side = 2 * int(np.ceil(half * 1.6)) + 1
    clumps = smooth_noise((side, side), look.clump_um / MPP, rng)
    spots = _nucleoli(look, half, slender, rng)

    def draw(angle: float) -> UInt8:
        x, y = _raster(half * 1.6)
        u = x * np.cos(angle) + y * np.sin(angle)  # along the nucleus
        v = (y * np.cos(angle) - x * np.sin(angle)) / slender
        inside = (half * reach(np.arctan2(v, u)) - np.hypot(u, v)) * np.sqrt(slender)
        chromatin = 1 + look.clumping * clumps + look.rim * np.exp(-np.square(inside / 1.6))
        for centre_u, centre_v, radius in spots:
            dot = _soft(radius - np.hypot(u - centre_u, v * slender - centre_v), 0.8)
            chromatin = np.maximum(chromatin, 2.0 * dot)
        return _encode(density * chromatin * _soft(inside, 0.9))

    return draw


def _nucleoli(look: Look, half: float, slender: float, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    spots = []
    for _ in range(rng.integers(look.nucleoli[0], look.nucleoli[1] + 1)):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5) * half
        radius = look.nucleolus_um / 2 / MPP * rng.uniform(0.75, 1.25)
        spots.append((far * np.cos(angle), far * slender * np.sin(angle), radius))
    return spots


def _outline(roughness: float, rng: np.random.Generator) -> Callable[[Float64], Float64]:
    knots = np.linspace(-np.pi, np.pi, 65)
    values = polar_reach(knots, roughness, rng)
    return lambda theta: np.asarray(np.interp(theta, knots, values))


def _raster(half: float) -> tuple[Float64, Float64]:
    n = int(np.ceil(half))
    y, x = np.mgrid[-n : n + 1, -n : n + 1].astype(np.float64)
    return x, y


def _soft(inside_px: Float64, width_px: float) -> Float64:
    """1 well inside, 0 well outside, an edge ``width_px`` wide."""
    return np.asarray(np.clip(0.5 + inside_px / width_px / 2, 0, 1))


def _encode(density: Float32 | Float64) -> UInt8:
    return np.clip(density * PER_OD, 0, 250).astype(np.uint8)
