"""Resampling of patches and overviews: the exact mean over each output pixel's footprint."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from scipy.sparse import csr_array

from ..types import Int64, UInt8

Rectangle = tuple[float, float, float, float]  # (left, top, right, bottom)


def area_mean(pixels: UInt8, box: Rectangle, size: tuple[int, int]) -> UInt8:
    """Resample a box of an image with an area filter that neither shifts nor aliases.

    The image is constant on each of its pixels, and each output pixel is the mean over its exact, fractional
    footprint, rounded half up. Footprints of whole pixels take a faster path to the same result; footprints of one
    pixel are copied.

    Parameters
    ----------
    pixels : ndarray of uint8, (h, w, 3)
        The image.
    box : (float, float, float, float)
        (left, top, right, bottom) inside the image, in pixels.
    size : (int, int)
        (width, height) of the output.

    Returns
    -------
    ndarray of uint8, (height, width, 3)
        The resampled box.
    """
    left, top, right, bottom = box
    factors = (right - left) / size[0], (bottom - top) / size[1]
    if all(float(v).is_integer() for v in (left, top, *factors)):
        x, y, fx, fy = int(left), int(top), int(factors[0]), int(factors[1])
        return block_means(pixels[y : y + size[1] * fy, x : x + size[0] * fx], fx, fy)
    rows = _filter(len(pixels), top, factors[1], size[1]) @ pixels.reshape(len(pixels), -1).astype(np.float32)
    columns = rows.reshape(size[1], -1, 3).swapaxes(0, 1)  # (w, height, 3)
    both = _filter(len(columns), left, factors[0], size[0]) @ columns.reshape(len(columns), -1)
    rounded: UInt8 = np.floor(both.reshape(size[0], size[1], 3).swapaxes(0, 1) + np.float32(0.5)).astype(np.uint8)
    return rounded


def block_means(pixels: UInt8, fx: int, fy: int) -> UInt8:
    """Means over blocks of pixels, in integer arithmetic, rounded half up.

    Parameters
    ----------
    pixels : ndarray of uint8, (h, w, 3)
        The image.
    fx, fy : int
        Width and height of a block; they divide w and h.

    Returns
    -------
    ndarray of uint8, (h / fy, w / fx, 3)
        The means.
    """
    if (fx, fy) == (1, 1):
        return pixels.copy()
    if (fx, fy) == (2, 2):  # OpenCV's area filter also uses integers here, at four times the speed
        size = pixels.shape[1] // 2, pixels.shape[0] // 2
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    count = fx * fy
    kind = np.dtype(np.uint16 if 256 * count <= 2**16 else np.uint32)  # 255 count + count // 2 fits
    add = functools.partial(np.add, dtype=kind)
    rows = functools.reduce(add, (pixels[row::fy] for row in range(fy)))
    flat = rows.reshape(len(rows), -1)  # (height, 3 w)
    means = np.empty((len(rows), pixels.shape[1] // fx, 3), np.uint8)
    for colour in range(3):
        block = functools.reduce(add, (flat[:, colour + 3 * column :: 3 * fx] for column in range(fx)))
        block = add(block, count // 2)
        means[..., colour] = block // count if count & (count - 1) else block >> (count.bit_length() - 1)
    return means


@functools.lru_cache(maxsize=64)
def _filter(length: int, start: float, step: float, count: int) -> csr_array:
    """(count, length): row i has each pixel's weight in the mean over [start + i step, start + (i + 1) step).

    Cached, because the patches of a grid need only a few different filters.
    """
    edges = np.clip(start + step * np.arange(count + 1), 0, length)
    low, high = edges[:-1], edges[1:]
    first: Int64 = np.minimum(np.floor(low).astype(np.int64), length - 1)
    taps = max(int(np.max(np.ceil(high).astype(np.int64) - first)), 1)
    pixel = first[:, None] + np.arange(taps)  # (count, taps)
    covered = np.clip(np.minimum(high[:, None], pixel + 1) - np.maximum(low[:, None], pixel), 0, None)
    weights = (covered / (high - low)[:, None]).astype(np.float32)
    starts = np.arange(0, weights.size + 1, taps)
    return csr_array((weights.ravel(), np.minimum(pixel, length - 1).ravel(), starts), shape=(count, length))
