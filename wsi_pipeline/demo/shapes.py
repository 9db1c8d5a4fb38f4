"""Irregular shapes: smooth noise, closed curves, dense points. Arrays are (rows, columns), points (x, y)."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from ..types import Bool, Float32, Float64


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Float32:
    """(h, w) noise of zero mean and about unit variance whose features are ``scale`` pixels wide."""
    h, w = shape
    rows, columns = int(np.ceil(h / scale)) + 3, int(np.ceil(w / scale)) + 3
    knots = rng.standard_normal((rows, columns)).astype(np.float32)
    x0, y0 = rng.random(2) + 0.5  # the lattice is shifted in every slide
    box = (x0, y0, x0 + w / scale, y0 + h / scale)
    return np.asarray(Image.fromarray(knots).resize((w, h), Image.Resampling.BICUBIC, box=box)) * np.float32(1.3)


def fractal_noise(shape: tuple[int, int], scale: float, octaves: int, rng: np.random.Generator) -> Float32:
    """(h, w) sum of smooth noise at ``octaves`` scales, each half as wide and half as strong as the one before."""
    total = smooth_noise(shape, scale, rng)
    for i in range(1, octaves):
        total = total + smooth_noise(shape, max(scale / 2**i, 1.0), rng) / 2**i
    return total / np.float32(np.sqrt(sum(0.25**i for i in range(octaves))))


def resized(field: Float32, shape: tuple[int, int]) -> Float32:
    """Resample ``field`` to ``shape`` = (h, w), bicubic."""
    return np.asarray(Image.fromarray(field).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def closed_curve(radius: float, roughness: float, rng: np.random.Generator, points: int = 96) -> Float64:
    """(points, 2) irregular smooth outline around the origin with the area of a circle of ``radius``.

    ``roughness`` is the relative strength of the bulges. The outline is star-shaped, so it never intersects itself.
    """
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    reach = polar_reach(angle, roughness, rng)
    outline = reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(outline * radius * np.sqrt(np.pi / polygon_area(outline)))


def polar_reach(angle: Float64, roughness: float, rng: np.random.Generator) -> Float64:
    """Distance from the origin to an irregular outline of about unit radius, at each ``angle`` in radians."""
    waves = np.arange(2, 8)
    strength = rng.normal(0, 2.2 * roughness, len(waves)) / waves
    shift = rng.uniform(0, 2 * np.pi, len(waves))
    bulge = (strength * np.cos(np.multiply.outer(angle, waves) + shift)).sum(axis=-1)
    return np.asarray(np.clip(1 + bulge, 0.45, 1.7))


def polygon_area(polygon: Float64) -> float:
    """Area of a simple polygon (n, 2)."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def polygon_mask(polygon: Float64, shape: tuple[int, int]) -> Bool:
    """(h, w) True inside ``polygon``, whose unit is one pixel of the mask."""
    image = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(image).polygon([(float(x) - 0.5, float(y) - 0.5) for x, y in polygon], fill=1)
    return np.array(image)


def signed_distance(mask: Bool) -> Float32:
    """Pixels to the border of ``mask``: positive inside, negative outside."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, 1e6 if mask.all() else -1e6, np.float32)
    return np.asarray(distance_transform_edt(mask) - distance_transform_edt(~mask), np.float32)


def crowded_points(
    mask: Bool, unit: float, spacing: float, rng: np.random.Generator, jitter: float = 0.28, keep: float = 1.0
) -> Float64:
    """(N, 2) points of a jittered hexagonal lattice that lie on ``mask``, whose pixels are ``unit`` wide.

    Neighbours are ``spacing`` apart, never closer than about half of it; ``keep`` is the fraction that is kept.
    """
    ys, xs = np.nonzero(mask)
    if len(xs) == 0:
        return np.zeros((0, 2))
    x0, x1, y0, y1 = xs.min() * unit, (xs.max() + 1) * unit, ys.min() * unit, (ys.max() + 1) * unit
    pitch = spacing * np.sqrt(0.75)
    columns, rows = int((x1 - x0) / spacing) + 2, int((y1 - y0) / pitch) + 2
    row, column = np.mgrid[0:rows, 0:columns]
    x = x0 + (column + 0.5 * (row % 2) - 0.25) * spacing
    y = y0 + row * pitch
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing
    points = points[rng.random(len(points)) < keep]
    return np.asarray(points[at(mask, points / unit, outside=False)])


def at(field: np.ndarray, points: Float64, outside: float | bool) -> np.ndarray:
    """(N,) values of ``field`` at ``points`` in pixels; ``outside`` for points beyond it."""
    column, row = np.floor(points).astype(np.int64).T
    h, w = field.shape
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    values = np.full(len(points), outside, field.dtype)
    values[inside] = field[row[inside], column[inside]]
    return values
