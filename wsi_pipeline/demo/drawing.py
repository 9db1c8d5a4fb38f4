"""Rendering of a slide plan: fields upsampled band by band, nuclei stamped, dye densities converted to colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..types import Float32, UInt8
from .cells import place_cells, stamp
from .cohort_plan import SlidePlan
from .fields import Fields, glands, ground, vessels
from .glass import dust, ink, light
from .layout import UNIT_PX0, Layout, Site, lay_out
from .nuclei import PER_OD
from .shapes import smooth_noise
from .stain import Stain, coloured, inked

_BAND_PX0 = 512
_FIBRE_PERIOD = 4096  # entries of the fibre profile; 16 to a µm
_EDGE = 16  # steps of the encoded distance to an edge per µm


@dataclass(frozen=True, eq=False)
class Drawing:
    """A rendered slide, and its lesions and infiltrates."""

    rgb: UInt8  # (side, side, 3)
    sites: tuple[Site, ...]


def draw(plan: SlidePlan) -> Drawing:
    """Render one slide; needs about 15 bytes of memory per pixel."""
    layout = lay_out(plan)
    fields = ground(layout, plan.generator(2))
    cells = glands(layout, fields, plan.generator(3)) + vessels(layout, fields, plan.generator(4))
    cells += place_cells(layout, fields.matter_um, fields.phase_um[0], fields.nests, fields.closed, plan.generator(5))
    haematoxylin, eosin = _densities(layout.side_px, fields, plan.generator(6))
    stamp(cells, haematoxylin, eosin, plan.generator(7))
    return Drawing(_colours(plan, layout, fields, haematoxylin, eosin), layout.sites)


def _bands(side_px: int) -> Iterator[tuple[int, int]]:
    for top in range(0, side_px, _BAND_PX0):
        yield top, min(top + _BAND_PX0, side_px)


def _stretched(field: np.ndarray, top: int, bottom: int, side_px: int) -> np.ndarray:
    """Rows ``top`` to ``bottom`` of a coarse field at level 0."""
    box = (0, top / UNIT_PX0, side_px / UNIT_PX0, bottom / UNIT_PX0)
    image = Image.fromarray(field).resize((side_px, bottom - top), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


def _densities(side_px: int, fields: Fields, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Haematoxylin and eosin of everything except nuclei, (side, side) each."""
    haematoxylin, eosin = np.empty((side_px, side_px), np.uint8), np.empty((side_px, side_px), np.uint8)
    coarse_h, coarse_e = (np.clip(f * PER_OD * 2, 0, 255).astype(np.uint8) for f in (fields.haematoxylin, fields.eosin))
    edge = np.clip(128 + fields.matter_um * _EDGE, 0, 255).astype(np.uint8)
    fibre = np.clip(fields.fibre * 255, 0, 255).astype(np.uint8)
    profile = _fibre_profile(rng)
    grain = _tile(1 + 0.05 * smooth_noise((1024, 1024), 1.8, rng) + 0.05 * smooth_noise((1024, 1024), 6, rng), side_px)
    opaque = np.clip((np.arange(256) - 128) / _EDGE / 0.8 + 0.5, 0, 1).astype(np.float32)
    for top, bottom in _bands(side_px):
        rows = slice(top, bottom)
        wave, gap = _fibres(fields, profile, top, bottom, side_px)
        strength = _stretched(fibre, top, bottom, side_px) * np.float32(1 / 255)
        there = opaque[_stretched(edge, top, bottom, side_px)] * grain[top % 1024 : top % 1024 + bottom - top]
        there *= np.float32(0.5)
        there *= 1 - gap * np.minimum(strength * 2, 0.95)
        haematoxylin[rows] = _stretched(coarse_h, top, bottom, side_px) * there
        there *= 1 + wave * strength
        eosin[rows] = np.minimum(_stretched(coarse_e, top, bottom, side_px) * there, 250)
    return haematoxylin, eosin


def _fibre_profile(rng: np.random.Generator) -> Float32:
    """Periodic density profile across the fibres: bundles with occasional gaps."""
    n = _FIBRE_PERIOD
    fine, broad = (smooth_noise((1, n), width_um * 16, rng)[0] for width_um in (3.0, 8.0))
    profile = fine * 0.3 + broad * 0.35
    ramp = np.clip(np.arange(n) / 256, 0, 1)
    return np.asarray(ramp * profile + (1 - ramp) * profile[::-1], np.float32)  # continuous from end to start


def _fibres(fields: Fields, profile: Float32, top: int, bottom: int, side_px: int) -> tuple[Float32, Float32]:
    """Relative density of two interwoven layers of fibres, and the gaps (1) in loose tissue."""
    layers = []
    for phase_um in fields.phase_um:
        entry = (_stretched(phase_um, top, bottom, side_px) * 16).astype(np.int32) & (_FIBRE_PERIOD - 1)
        layers.append(profile[entry])
    wave: Float32 = layers[0] + _stretched(fields.weave, top, bottom, side_px) * (layers[1] - layers[0])
    gap = np.clip((_stretched(fields.looseness, top, bottom, side_px) - wave - np.float32(0.75)) * 9, 0, 1)
    return np.clip(wave * np.float32(0.75), -0.6, 0.5), gap


def _tile(block: Float32, side_px: int) -> Float32:
    """A block of 1024 rows repeated to the slide's width, and once more downwards."""
    repeats = -(-side_px // block.shape[1])
    return np.tile(block, (2, repeats))[:, :side_px]


def _colours(plan: SlidePlan, layout: Layout, fields: Fields, haematoxylin: UInt8, eosin: UInt8) -> UInt8:
    """The densities, doubled in folds, as (side, side, 3) colours with the marks that lie on the glass."""
    rng, side_px = plan.generator(8), plan.side_px
    table = Stain.drawn(rng).table()
    gain, shadow = light(fields.fold.shape, rng), dust(fields.fold.shape, rng)
    stroke = ink(layout, plan.generator(9)) if plan.pen else None
    noise = _tile(rng.normal(0, 1.1, (1024, 1024)).astype(np.float32), side_px)
    fold_px = int(rng.integers(25, 60))
    rgb = np.empty((side_px, side_px, 3), np.uint8)
    for top, bottom in _bands(side_px):
        rows = slice(top, bottom)
        h, e = haematoxylin[rows], eosin[rows]
        double = _stretched(fields.fold, top, bottom, side_px)
        if double.any():
            h, e = (np.minimum(d + double * np.roll(d, fold_px, axis=1), 255).astype(np.uint8) for d in (h, e))
        lit = _stretched(gain, top, bottom, side_px) + noise[top % 1024 : top % 1024 + bottom - top]
        lit *= 1 - _stretched(shadow, top, bottom, side_px)
        rgb[rows] = coloured(h, e, table, np.clip(lit, 0, 255).astype(np.uint8))
        if stroke is not None and plan.pen and (strength := _stretched(stroke, top, bottom, side_px)).any():
            rgb[rows] = inked(rgb[rows], strength, plan.pen)
    return rgb
