"""Position of the tissue on the glass, and of tumour, infiltrates and fat in the tissue.

Two rasters: the plan raster (8 µm per pixel), on which positions are chosen, and the coarse raster (``UNIT_PX0``
level-0 pixels, 2 µm), on which the fields of a slide are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.ndimage import label as label_components
from shapely.geometry import Polygon, box
from shapely.ops import unary_union

from ..errors import ConfigError
from ..types import Bool, Float32, Float64
from .cohort_plan import SlidePlan
from .nuclei import MPP
from .shapes import (
    closed_curve,
    crowded_points,
    fractal_noise,
    polygon_area,
    polygon_mask,
    resized,
    signed_distance,
    smooth_noise,
)

UNIT_PX0 = 4
UNIT_UM = UNIT_PX0 * MPP
_PLAN_UNITS = 4  # coarse pixels per plan pixel
_PLAN_UM = UNIT_UM * _PLAN_UNITS
_MARGIN_UM = 35.0  # between a site's outline and the tissue's edge; less where the tissue is narrow
_PATCH_PX0 = 224


@dataclass(frozen=True, eq=False)
class Site:
    """A lesion or an infiltrate: outlines (n, 2) in level-0 pixels, and of an island of normal tissue in it, if any."""

    tumour: bool
    outline_px0: Float64
    hole_px0: Float64 | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """Coarse rasters (h, w) of one slide, and the outlines from which they were made."""

    side_px: int
    inside_um: Float32  # distance to the tissue's edge, negative on glass
    tumour: Bool
    lymphoid: Bool
    fat: Bool
    lobule: Bool  # where glands are allowed
    quiet: Bool  # far enough from every site for a vessel
    sites: tuple[Site, ...]

    @property
    def stroma(self) -> Bool:
        """Tissue that is neither tumour, infiltrate nor fat."""
        return (self.inside_um > 6) & ~(self.tumour | self.lymphoid | self.fat)


def lay_out(plan: SlidePlan) -> Layout:
    """Choose the positions of everything on one slide.

    Lesions are enlarged repeatedly by a few per cent until they contain enough whole patches. Raises ``ConfigError``
    if a tumour slide is too small for any lesion.
    """
    rng = plan.generator(1)
    coarse = -(-plan.side_px // UNIT_PX0)
    side = -(-coarse // _PLAN_UNITS)
    inside_um = _tissue((side, side), rng) * _PLAN_UM  # (side, side)
    for attempt in range(12):
        grown = replace(plan, lesions_um=tuple(d * 1.05**attempt for d in plan.lesions_um))
        sites = _sites(grown, inside_um, rng)
        if whole_patches(sites) >= plan.least_patches:
            break
    if plan.lesions_um and not any(site.tumour for site in sites):
        raise ConfigError(f"{plan.slide_id} ({plan.side_px} px) is too small for a lesion; give a larger side")
    return _rasters(plan.side_px, coarse, inside_um, sites, rng)


def whole_patches(sites: tuple[Site, ...]) -> int:
    """Number of patches of 112 µm, on the grid from (0, 0), that lie entirely in tumour."""
    holes = [Polygon(site.hole_px0) for site in sites if site.hole_px0 is not None]
    whole = 0
    for lesion in (Polygon(site.outline_px0).difference(unary_union(holes)) for site in sites if site.tumour):
        x0, y0, x1, y1 = (int(v // _PATCH_PX0) * _PATCH_PX0 for v in lesion.bounds)
        corners = [(x, y) for x in range(x0, x1 + 1, _PATCH_PX0) for y in range(y0, y1 + 1, _PATCH_PX0)]
        whole += sum(lesion.contains(box(x, y, x + _PATCH_PX0, y + _PATCH_PX0)) for x, y in corners)
    return whole


def site_mask(sites: tuple[Site, ...], shape: tuple[int, int], unit_px0: float) -> Bool:
    """(h, w) True inside the outline of any site; a pixel is ``unit_px0`` wide."""
    mask = np.zeros(shape, bool)
    for site in sites:
        mask |= polygon_mask(site.outline_px0 / unit_px0, shape)
    return mask


def tumour_mask(sites: tuple[Site, ...], shape: tuple[int, int], unit_px0: float) -> Bool:
    """(h, w) True in tumour, holes left out; a pixel is ``unit_px0`` wide."""
    mask = site_mask(tuple(site for site in sites if site.tumour), shape, unit_px0)
    for site in sites:
        if site.hole_px0 is not None:
            mask &= ~polygon_mask(site.hole_px0 / unit_px0, shape)
    return mask


def _tissue(shape: tuple[int, int], rng: np.random.Generator) -> Float32:
    """Signed distance, in pixels, to the edge of one to three irregular pieces on 45-65 % of the glass."""
    h, w = shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    x, y = x / w - 0.5, y / h - 0.5
    pieces = min(int(rng.integers(1, 4)), 1 + (w >= 60) + (w >= 150))  # a small slide is too small for three
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    near = []
    for i in range(pieces):
        across = (i - (pieces - 1) / 2) / pieces * 0.95 + rng.normal(0, 0.02)
        along = rng.normal(0, 0.05)
        near.append(np.hypot((u - along) / rng.uniform(0.42, 0.5), (v - across) / (0.5 / pieces)))
    first, *rest = np.sort(np.stack(near) + 0.1 * _noises(pieces, shape, rng), axis=0)
    field = -first + 0.2 * fractal_noise(shape, 0.3 * w, 5, rng)
    if rest:
        field -= 0.6 * np.exp(-np.square((rest[0] - first) / 0.14))  # a gap between two pieces
    rim = np.maximum(abs(x), abs(y)) + 0.02 * smooth_noise(shape, 0.1 * w, rng)
    field -= 40 * np.square(np.clip(rim - 0.36, 0, None))  # glass on all sides
    field[np.maximum(abs(x), abs(y)) > 0.485] = -9.0
    mask = field > np.quantile(field, 1 - rng.uniform(0.46, 0.63))
    parts, count = label_components(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    pieces_only = np.isin(parts, 1 + np.flatnonzero(sizes > 0.02 * mask.sum()))
    return np.asarray(gaussian_filter(signed_distance(pieces_only), 1.2))


def _noises(count: int, shape: tuple[int, int], rng: np.random.Generator) -> Float32:
    return np.stack([fractal_noise(shape, 0.35 * shape[1], 4, rng) for _ in range(count)])


def _sites(plan: SlidePlan, inside_um: Float32, rng: np.random.Generator) -> tuple[Site, ...]:
    """Lesions, then infiltrates, without contact; each is shrunk if the tissue is too narrow for it."""
    free = inside_um > 0
    sites: list[Site] = []
    for tumour, diameter in [(True, d) for d in plan.lesions_um] + [(False, d) for d in plan.infiltrates_um]:
        clearance_um = signed_distance(free) * _PLAN_UM
        outline = _placed(clearance_um, diameter / 2, rng)
        if outline is None:
            continue
        hole = None
        if tumour and plan.hole and not sites:
            radius_px0 = 0.3 * np.sqrt(polygon_area(outline) / np.pi)
            hole = outline.mean(axis=0) + closed_curve(radius_px0, 0.08, rng, points=48)
        sites.append(Site(tumour, outline, hole))
        taken = polygon_mask(outline * MPP / _PLAN_UM, free.shape)
        free &= signed_distance(taken) * _PLAN_UM < -70
    return tuple(sites)


def _placed(clearance_um: Float32, radius_um: float, rng: np.random.Generator) -> Float64 | None:
    """An outline (n, 2) in level-0 pixels, each vertex with enough clearance; None if there is no space for one."""
    widest_um = float(clearance_um.max())
    margin_um = min(_MARGIN_UM, widest_um / 4)
    radius_um = min(radius_um, (widest_um - margin_um) / 1.1)
    while radius_um > 20:
        rows, columns = np.nonzero(clearance_um > 0.9 * radius_um + margin_um)
        for _ in range(12 if len(rows) else 0):
            k = rng.integers(len(rows))
            centre_um = (np.array([columns[k], rows[k]]) + rng.random(2)) * _PLAN_UM
            outline_um = centre_um + closed_curve(radius_um, 0.1, rng)
            column, row = np.clip(outline_um // _PLAN_UM, 0, len(clearance_um) - 1).astype(int).T
            if clearance_um[row, column].min() > margin_um:
                return np.asarray(outline_um / MPP)
        radius_um *= 0.93
    return None


def _rasters(
    side_px: int, coarse: int, plan_inside_um: Float32, sites: tuple[Site, ...], rng: np.random.Generator
) -> Layout:
    shape = (coarse, coarse)
    stretched = resized(plan_inside_um, (plan_inside_um.shape[0] * _PLAN_UNITS,) * 2)[:coarse, :coarse]
    inside_um = stretched + 5 * fractal_noise(shape, 30, 4, rng)
    tumour = tumour_mask(sites, shape, UNIT_PX0)
    lymphoid = site_mask(tuple(site for site in sites if not site.tumour), shape, UNIT_PX0)
    plan_shape = (len(plan_inside_um), len(plan_inside_um))
    away_um = -signed_distance(site_mask(sites, plan_shape, UNIT_PX0 * _PLAN_UNITS)) * _PLAN_UM
    lymphoid |= _aggregates(plan_inside_um, away_um, shape, rng)
    fat = _patches(plan_inside_um, away_um > 60, 450, rng.uniform(0.02, 0.2), shape, rng)
    lobule = _patches(plan_inside_um, away_um > 85, 600, rng.uniform(0.2, 0.45), shape, rng) & ~fat & ~lymphoid
    quiet = resized(away_um, (len(plan_inside_um) * _PLAN_UNITS,) * 2)[:coarse, :coarse] > 45
    return Layout(side_px, inside_um, tumour, lymphoid & ~tumour & (inside_um > 8), fat, lobule, quiet, sites)


def _patches(
    inside_um: Float32, allowed: Bool, wide_um: float, fraction: float, shape: tuple[int, int], rng: np.random.Generator
) -> Bool:
    """Coarse mask of irregular patches that cover a ``fraction`` of the tissue, inside ``allowed``."""
    noise = fractal_noise(inside_um.shape, wide_um / _PLAN_UM, 3, rng)
    level = np.quantile(noise[inside_um > 0], 1 - fraction)
    margin = np.where(allowed & (inside_um > 12), noise - level, -1.0).astype(np.float32)
    stretched = resized(margin, (margin.shape[0] * _PLAN_UNITS,) * 2)[: shape[0], : shape[1]]
    return stretched > 0


def _aggregates(inside_um: Float32, away_um: Float32, shape: tuple[int, int], rng: np.random.Generator) -> Bool:
    """Small aggregates of lymphocytes, 60-180 µm wide, anywhere in the tissue."""
    centres_um = crowded_points((inside_um > 90) & (away_um > 130), _PLAN_UM, 480, rng, jitter=0.5, keep=0.6)
    mask = np.zeros(shape, bool)
    for centre_um in centres_um:
        outline_um = centre_um + closed_curve(rng.uniform(30, 90), 0.16, rng, points=32)
        mask |= polygon_mask(outline_um / UNIT_UM, shape)
    return mask & (smooth_noise(shape, 10, rng) > -1.2)
