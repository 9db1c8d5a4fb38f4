"""Dye densities of everything except nuclei, on the coarse raster.

Stroma with its fibres, glands, fat cells, vessels, the background of tumour and infiltrates, folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from ..types import Bool, Float32, Float64
from .cells import Cells
from .layout import UNIT_PX0, UNIT_UM, Layout, site_mask
from .nuclei import MPP
from .shapes import crowded_points, fractal_noise, polar_reach, resized, signed_distance, smooth_noise


@dataclass(frozen=True, eq=False)
class Fields:
    """Coarse rasters (h, w); glands and vessels are painted over the background, in place."""

    matter_um: Float32  # distance to the nearest empty area (glass, lumen, vacuole), negative inside
    haematoxylin: Float32  # OD
    eosin: Float32  # OD
    fibre: Float32  # contrast of the fibre texture
    phase_um: tuple[Float32, Float32]  # the fibres of two layers follow their level lines
    weave: Float32  # 0: the first layer is visible, 1: the second
    looseness: Float32  # gaps open between the fibres where positive
    fold: Float32  # 1 where the tissue is folded
    nests: Bool  # nests of tumour cells
    closed: Bool  # glands and vessels: no stroma cells here


def ground(layout: Layout, rng: np.random.Generator) -> Fields:
    """Stroma, fat, tumour and infiltrates as soft-edged areas with their own dye densities and texture."""
    shape = layout.inside_um.shape
    tumour, lymphoid = _soft(layout.tumour), _soft(layout.lymphoid)
    cloud, fine = fractal_noise(shape, 90, 3, rng), smooth_noise(shape, 4, rng)
    dense = np.clip(0.5 + 0.5 * smooth_noise(shape, 220, rng), 0, 1)
    eosin = 0.29 + 0.09 * dense + 0.03 * cloud + 0.015 * fine
    haematoxylin = 0.055 + 0.02 * cloud
    fibre = 0.55 + 0.4 * (1 - dense)
    nests = _nests(shape, rng)
    for mask, h, e, texture in (
        (lymphoid, 0.16, 0.22, 0.1),
        (tumour * nests, 0.12, 0.2, 0.05),
    ):
        haematoxylin += mask * (h - haematoxylin)
        eosin += mask * (e + 0.03 * fine - eosin)
        fibre += mask * (texture - fibre)
    matter_um = np.minimum(layout.inside_um, _fat(layout, rng))
    fibre[layout.fat] = 0.15
    layers, weave = _phases(shape, rng)
    loose = 0.45 * (1 - dense) + 0.4 * fractal_noise(shape, 22, 2, rng)
    fold = _folds(layout, rng)
    return Fields(
        matter_um,
        haematoxylin,
        eosin,
        fibre,
        layers,
        weave,
        loose,
        fold,
        layout.tumour & (nests > 0.5),
        np.zeros(shape, bool),
    )


def glands(layout: Layout, fields: Fields, rng: np.random.Generator) -> list[Cells]:
    """Paint rings of columnar epithelium around a lumen, in the lobules; returns their nuclei."""
    centres = crowded_points(layout.lobule & (layout.inside_um > 55), UNIT_PX0, 112 / MPP, rng, jitter=0.2, keep=0.95)
    rings = []
    for centre in centres:
        radius_um = rng.uniform(24, 56)
        thick_um = min(rng.uniform(13, 19), radius_um * 0.8)
        reach = polar_reach(_TURN, 0.09, rng) * radius_um
        _gland(fields, centre, reach, thick_um, rng)
        rings += _epithelium(centre, reach, thick_um, rng)
    return rings


def vessels(layout: Layout, fields: Fields, rng: np.random.Generator) -> list[Cells]:
    """Paint small vessels, a thin pink wall with flat nuclei and red cells inside; returns their cells."""
    free = layout.stroma & layout.quiet & ~fields.closed & ~layout.lobule & (layout.inside_um > 60)
    rings = []
    for centre in crowded_points(free, UNIT_PX0, 330 / MPP, rng, jitter=0.5, keep=0.5):
        radius_um = rng.uniform(9, 30)
        reach = polar_reach(_TURN, 0.12, rng) * radius_um
        inside, window = _inside_um(fields, centre, reach)
        wall = np.clip(1 - abs(inside + 2.5) / 3.5, 0, 1)
        fields.eosin[window] += 0.2 * wall
        fields.matter_um[window] = np.minimum(fields.matter_um[window], -inside)
        fields.closed[window] |= inside > -6
        n = max(4, int(2 * np.pi * radius_um / 16))
        angle = rng.uniform(0, 2 * np.pi, n)
        far = (np.interp(angle, _TURN, reach) + 1.5) / MPP
        rings.append(Cells("spindle", _round(centre, far, angle), angle + np.pi / 2))
        blood = crowded_points(inside > 3.5, UNIT_PX0, 6.6 / MPP, rng, keep=rng.uniform(0.2, 0.9))
        corner = np.array([window[1].start, window[0].start]) * UNIT_PX0
        rings.append(Cells("blood", blood + corner, np.zeros(len(blood))))
    return rings


_TURN = np.linspace(0, 2 * np.pi, 73)


def _gland(fields: Fields, centre: Float64, reach: Float64, thick_um: float, rng: np.random.Generator) -> None:
    inside, window = _inside_um(fields, centre, reach)
    shape = inside.shape
    lumen_edge = thick_um + 1.5 * smooth_noise(shape, 6, rng)
    cell = np.clip(inside / 2 + 0.5, 0, 1)
    apical = np.clip(inside / thick_um, 0, 1)
    e, h = 0.19 + 0.1 * apical + 0.02 * smooth_noise(shape, 3, rng), 0.2 - 0.1 * apical
    fields.eosin[window] += cell * (e - fields.eosin[window]) + 0.12 * np.clip(1 - abs(inside + 1.5) / 2, 0, 1)
    fields.haematoxylin[window] += cell * (h - fields.haematoxylin[window])
    fields.fibre[window] *= 1 - np.clip(inside / 6 + 1, 0, 1)
    if reach.min() > thick_um + 4 and rng.random() < 0.9:
        fields.matter_um[window] = np.minimum(fields.matter_um[window], lumen_edge - inside)
    fields.closed[window] |= inside > -5


def _epithelium(centre: Float64, reach: Float64, thick_um: float, rng: np.random.Generator) -> list[Cells]:
    """Nuclei near the basement membrane, a few in a second row, elongated towards the lumen."""
    rows = []
    for depth_um, spacing_um in ((0.32 * thick_um, 6.9), (0.6 * thick_um, 15.0)):
        n = int(2 * np.pi * max(float(reach.mean()) - depth_um, 5) / spacing_um)
        angle = (np.arange(n) + rng.uniform(-0.2, 0.2, n)) * 2 * np.pi / n + rng.uniform(0, 1)
        far = (np.interp(angle % (2 * np.pi), _TURN, reach) - depth_um + rng.normal(0, 0.8, n)) / MPP
        rows.append(Cells("epithelial", _round(centre, far, angle), angle))
    return rows


def _inside_um(fields: Fields, centre: Float64, reach: Float64) -> tuple[Float32, tuple[slice, slice]]:
    """Distance inwards from an outline around ``centre``, in a window of the coarse raster; and the window."""
    h, w = fields.eosin.shape
    half = int(reach.max() / UNIT_UM) + 6
    column, row = (centre / UNIT_PX0).astype(int)
    window = slice(max(row - half, 0), min(row + half, h)), slice(max(column - half, 0), min(column + half, w))
    y, x = np.mgrid[window]
    dx, dy = (x + 0.5) * UNIT_UM - centre[0] * MPP, (y + 0.5) * UNIT_UM - centre[1] * MPP
    theta = np.arctan2(dy, dx) % (2 * np.pi)
    return (np.interp(theta, _TURN, reach) - np.hypot(dx, dy)).astype(np.float32), window


def _round(centre: Float64, far_px0: Float64, angle: Float64) -> Float64:
    return np.asarray(centre + far_px0[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def _soft(mask: Bool) -> Float32:
    return np.asarray(gaussian_filter(mask.astype(np.float32), 1.2))


def _nests(shape: tuple[int, int], rng: np.random.Generator) -> Float32:
    """1 in nests of tumour cells, 0 in the thin strands of stroma between them."""
    ridge = abs(fractal_noise(shape, 55, 2, rng))
    return np.asarray(np.clip((ridge - 0.06) / 0.05, 0, 1))


def _phases(shape: tuple[int, int], rng: np.random.Generator) -> tuple[tuple[Float32, Float32], Float32]:
    """Two fields with a gradient of about one per µm and wavy level lines, and where each is visible."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32) * np.float32(UNIT_UM)
    turn = rng.uniform(0, np.pi)
    bend = 220 * smooth_noise(shape, 350, rng) + 22 * smooth_noise(shape, 50, rng)
    layers = []
    for angle in (turn, turn + rng.uniform(0.25, 0.5)):
        own = 14 * smooth_noise(shape, 38, rng) + 4 * smooth_noise(shape, 11, rng) + 0.8 * smooth_noise(shape, 3, rng)
        layers.append(x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + (bend + own).astype(np.float32))
    weave = np.clip(0.5 + 1.6 * fractal_noise(shape, 45, 2, rng), 0, 1)
    return (layers[0], layers[1]), weave.astype(np.float32)


def _fat(layout: Layout, rng: np.random.Generator) -> Float32:
    """Distance to the nearest vacuole in µm: half a wall between two fat cells, large without fat."""
    matter = np.full(layout.fat.shape, 50.0, np.float32)
    seeds = crowded_points(layout.fat, UNIT_PX0, 62 / MPP, rng, jitter=0.3)
    if len(seeds) < 3:
        return matter
    rows, columns = np.nonzero(layout.fat)
    points = (np.stack([columns, rows], axis=1) + 0.5) * UNIT_PX0
    distance, _ = cKDTree(seeds).query(points, k=3, workers=1)
    wall = (distance[:, 1] - distance[:, 0]) / 2 * MPP
    corner = (distance[:, 2] - distance[:, 0]) / 2 * MPP
    rounded = wall - 5 * np.exp((wall - corner) / 5)  # vacuoles are round where three cells meet
    edge = gaussian_filter(signed_distance(layout.fat) * np.float32(UNIT_UM), 3)[rows, columns]
    vacuole = np.minimum(rounded, edge)
    matter[rows, columns] = 1.7 - vacuole
    return matter


def _folds(layout: Layout, rng: np.random.Generator) -> Float32:
    """1 in bands 40-110 µm wide along a bent line over up to half of the slide; never on a site."""
    step, side = 8, layout.side_px
    coarse = len(layout.inside_um)
    n = -(-coarse // step)
    y, x = np.mgrid[0:n, 0:n] * (step * UNIT_PX0)
    crowd = site_mask(layout.sites, (n, n), step * UNIT_PX0)
    total = np.zeros((n, n), np.float32)
    for _ in range(rng.integers(0, 3)):
        turn, bend = rng.uniform(0, np.pi), rng.uniform(-1.2, 1.2)
        u0, v0 = rng.uniform(0.3, 0.7, 2) * side
        half_length, width = rng.uniform(0.1, 0.3) * side, rng.uniform(40, 110) / MPP
        along = ((x - u0) * np.cos(turn) + (y - v0) * np.sin(turn)) / half_length
        across = (y - v0) * np.cos(turn) - (x - u0) * np.sin(turn) + bend * half_length * np.square(along)
        taper = np.sqrt(np.clip(1 - np.square(along), 0, None))
        inside_um = (taper * width / 2 - abs(across)) * MPP * (taper > 0)
        if not (crowd & (inside_um > -20) & (taper > 0)).any():
            total = np.maximum(total, inside_um.astype(np.float32))
    return np.clip(resized(total, (n * step, n * step))[:coarse, :coarse] / 6, 0, 1)
