"""One resampling for patches and overviews: the exact mean over each output pixel's footprint."""

from __future__ import annotations

import numpy as np

from ..types import Float32, Int64, UInt8

Rectangle = tuple[float, float, float, float]  # (left, top, right, bottom)


def area_mean(pixels: UInt8, box: Rectangle, size: tuple[int, int]) -> UInt8:
    """``box`` of ``pixels`` (h, w, 3) as ``size`` = (width, height) pixels, uint8 (height, width, 3).

    The picture is constant on each of its pixels and each output pixel is its mean over that pixel's exact,
    fractional footprint, rounded half up: an area filter that neither shifts nor aliases. Where the footprints are
    whole pixels, the same comes faster; where one is one pixel, nothing is computed at all.
    """
    left, top, right, bottom = box
    factors = (right - left) / size[0], (bottom - top) / size[1]
    if all(float(v).is_integer() for v in (left, top, *factors)):
        x, y, fx, fy = int(left), int(top), int(factors[0]), int(factors[1])
        return _whole_means(pixels[y : y + size[1] * fy, x : x + size[0] * fx], fx, fy)
    rows = _mean_along(pixels, top, factors[1], size[1])  # (height, w, 3)
    columns = np.ascontiguousarray(rows.swapaxes(0, 1))  # (w, height, 3)
    both = _mean_along(columns, left, factors[0], size[0])  # (width, height, 3)
    rounded: UInt8 = np.floor(both.swapaxes(0, 1) + np.float32(0.5)).astype(np.uint8)
    return rounded


def _whole_means(pixels: UInt8, fx: int, fy: int) -> UInt8:
    """Means over blocks of ``fx`` x ``fy`` pixels, in whole numbers."""
    if (fx, fy) == (1, 1):
        return pixels.copy()
    total = np.zeros((len(pixels) // fy, pixels.shape[1] // fx, 3), np.uint32)
    for row in range(fy):
        for column in range(fx):
            total += pixels[row::fy, column::fx]
    means: UInt8 = ((total + fx * fy // 2) // (fx * fy)).astype(np.uint8)
    return means


def _mean_along(values: UInt8 | Float32, start: float, step: float, count: int) -> Float32:
    """Means of axis 0 over the intervals [start + i step, start + (i + 1) step), i < count."""
    edges = np.clip(start + step * np.arange(count + 1), 0, len(values))
    low, high = edges[:-1], edges[1:]
    first: Int64 = np.minimum(np.floor(low).astype(np.int64), len(values) - 1)
    taps = int(np.max(np.ceil(high).astype(np.int64) - first))
    total = np.zeros((count, *values.shape[1:]), np.float32)
    for tap in range(max(taps, 1)):
        pixel = first + tap
        covered = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) / (high - low)
        weight = covered.astype(np.float32).reshape(-1, *([1] * (values.ndim - 1)))
        total += weight * values[np.minimum(pixel, len(values) - 1)]
    return total
