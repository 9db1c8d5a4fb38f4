"""Positions of the cells, and stamping of their images onto the dye densities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion

from ..types import Bool, Float32, Float64, UInt8
from .layout import UNIT_PX0, Layout
from .nuclei import ANGLES, LOOKS, MPP, bodies, sprites
from .shapes import at, crowded_points, smooth_noise

_VARIANTS = 24  # different images of a kind on one slide


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of one kind: a key of ``LOOKS``, "blood" or "cytoplasm"."""

    kind: str
    xy_px0: Float64  # (n, 2)
    angle: Float64  # (n,)


def stroma_cells(stroma: Bool, phase_um: Float32, rng: np.random.Generator) -> list[Cells]:
    """Fibroblasts along the fibres, and scattered lymphocytes."""
    spindles = crowded_points(stroma, UNIT_PX0, 27 / MPP, rng, jitter=0.45, keep=0.62)
    infiltrated = (smooth_noise(stroma.shape, 80, rng) > 0.3) & stroma
    lymphocytes = crowded_points(infiltrated, UNIT_PX0, 24 / MPP, rng, jitter=0.5, keep=0.4)
    along = _fibre_angle(phase_um, spindles) + rng.normal(0, 0.22, len(spindles))
    return [Cells("spindle", spindles, along), Cells("lymphocyte", lymphocytes, np.zeros(len(lymphocytes)))]


def fat_cells(fat: Bool, matter_um: Float32, rng: np.random.Generator) -> list[Cells]:
    """Flat nuclei in the walls between fat cells."""
    wall = fat & (matter_um > 0.6)
    points = crowded_points(wall, UNIT_PX0, 16 / MPP, rng, jitter=0.5, keep=0.3)
    return [Cells("spindle", points, _fibre_angle(matter_um, points))]


def lymphoid_cells(lymphoid: Bool, rng: np.random.Generator) -> list[Cells]:
    """Small dark round nuclei, densely packed."""
    points = crowded_points(lymphoid, UNIT_PX0, 8.3 / MPP, rng, jitter=0.3, keep=0.94)
    return [Cells("lymphocyte", points, np.zeros(len(points)))]


def tumour_cells(tumour: Bool, nests: Bool, phase_um: Float32, rng: np.random.Generator) -> list[Cells]:
    """Large pleomorphic nuclei, each in its cell; a few lymphocytes and fibroblasts between the nests."""
    points = crowded_points(nests, UNIT_PX0, 17.5 / MPP, rng, jitter=0.33, keep=0.98)
    strand = crowded_points(tumour & ~nests, UNIT_PX0, 20 / MPP, rng, jitter=0.4, keep=0.6)
    lymphocytes = crowded_points(tumour, UNIT_PX0, 45 / MPP, rng, jitter=0.5, keep=0.35)
    angle = rng.uniform(0, np.pi, len(points))
    return [
        Cells("cytoplasm", points, angle),
        Cells("spindle", strand, _fibre_angle(phase_um, strand)),
        Cells("lymphocyte", lymphocytes, np.zeros(len(lymphocytes))),
        Cells("tumour", points, angle),
    ]


def stamp(cells: Sequence[Cells], haematoxylin: UInt8, eosin: UInt8, rng: np.random.Generator) -> None:
    """Stamp every cell's image onto the dye densities (side, side), in place; where two overlap, the denser is kept."""
    present = {group.kind for group in cells if len(group.xy_px0)}
    libraries = {kind: sprites(kind, _VARIANTS, rng) for kind in LOOKS if kind in present}
    plasma = bodies(_VARIANTS, (9.5, 13.0), 0.34, 0.12, rng)
    blood = bodies(8, (2.9, 3.4), 0.78, 0.03, rng)
    for group in cells:
        n = len(group.xy_px0)
        if n == 0:
            continue
        variant = rng.integers(0, _VARIANTS, n)
        if group.kind in ("blood", "cytoplasm"):
            library = blood if group.kind == "blood" else plasma
            _lay(eosin, group.xy_px0, [library[v % len(library)] for v in variant])
            continue
        turned = libraries[group.kind]
        turn = np.rint(group.angle % np.pi / np.pi * ANGLES).astype(int) % len(turned[0])
        _lay(haematoxylin, group.xy_px0, [turned[v][t] for v, t in zip(variant, turn, strict=True)])


def _lay(density: UInt8, xy_px0: Float64, pictures: Sequence[UInt8]) -> None:
    h, w = density.shape
    for (x, y), picture in zip(np.rint(xy_px0).astype(int).tolist(), pictures, strict=True):
        half = len(picture) // 2
        top, left = y - half, x - half
        cut_top, cut_left = max(-top, 0), max(-left, 0)
        window = density[top + cut_top : min(y + half + 1, h), left + cut_left : min(x + half + 1, w)]
        part = picture[cut_top : cut_top + window.shape[0], cut_left : cut_left + window.shape[1]]
        np.maximum(window, part, out=window)


def _fibre_angle(field: Float32, points: Float64) -> Float64:
    """(n,) direction of the field's level lines at ``points``, in radians."""
    units = points / UNIT_PX0
    right, down = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    dx = at(field, units + right, outside=0.0) - at(field, units - right, outside=0.0)
    dy = at(field, units + down, outside=0.0) - at(field, units - down, outside=0.0)
    return np.asarray(np.arctan2(dy, dx) + np.pi / 2)


def place_cells(
    layout: Layout, matter_um: Float32, phase_um: Float32, nests: Bool, closed: Bool, rng: np.random.Generator
) -> list[Cells]:
    """All cells outside glands and vessels."""
    solid = matter_um > 2.5
    core = binary_erosion(layout.tumour, iterations=2)  # nuclei are wide: their centres stay 4 µm inside
    stroma = layout.stroma & ~closed & solid
    return [
        *stroma_cells(stroma, phase_um, rng),
        *fat_cells(layout.fat, matter_um, rng),
        *lymphoid_cells(layout.lymphoid & solid & ~closed, rng),
        *tumour_cells(layout.tumour & solid, nests & solid & core, phase_um, rng),
    ]
