"""The free-response ROC of CAMELYON16: how many lesions are found, at how many false alarms a slide.

Ehteshami Bejnordi et al., JAMA 2017, and the evaluation that the challenge published with it, rule by rule:
outlines are widened by 37.5 µm, what then touches is one lesion, lesions below 275 µm are isolated tumour cells and
count neither way. A detection hits the lesion it lies in, or is a false positive.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label
from shapely.geometry import MultiPolygon

from ..tile.contours import rasterise
from ..types import Float32, Float64, Int64

MPP = 0.243  # µm per pixel of level 0, for all slides of the challenge
CELL_PX0 = 32  # a cell of the mask is a pixel of level 5
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives a slide at which sensitivities are averaged
_WIDENED_UM, _ISOLATED_UM = 75 / 2, 275.0

Labels = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SlideFroc:
    """What the detections of one slide met."""

    false: Float32  # (n,) probabilities of the false positives
    lesions: Float32  # (L,) highest probability in each lesion; 0 where it is missed, or is isolated tumour cells
    targets: int  # lesions that are to be found: those that are no isolated tumour cells


def evaluation_mask(area: MultiPolygon, slide_size_px0: tuple[int, int], mpp: float = MPP) -> Labels:
    """Lesions 1..L of one slide, 0 elsewhere: (rows, columns) of cells of 32 x 32 px0, from the outlines in px0.

    A cell is in an outline where its centre is (what lies between all centres is no lesion). Cells less than 37.5 µm
    from it are added, holes are filled, and cells that touch, if only at a corner, are one lesion. ``area`` comes
    without exclusions. ``mpp``: the challenge takes 0.243 whatever the scanner says.
    """
    width, height = (math.ceil(extent / CELL_PX0) for extent in slide_size_px0)
    mask = np.zeros((height, width), np.int32)
    if area.is_empty:
        return mask
    reach = _WIDENED_UM / (mpp * CELL_PX0)  # cells
    left, top, right, bottom = np.asarray(area.bounds) / CELL_PX0
    margin = math.ceil(reach) + 1  # holds what is added and one free cell, so that the rest of the slide is not needed
    rows, columns = (
        slice(max(math.floor(low) - margin, 0), min(math.ceil(high) + margin, extent))
        for low, high, extent in ((top, bottom, height), (left, right, width))
    )
    window = mask[rows, columns]
    corner_px0 = np.array([columns.start, rows.start]) * CELL_PX0
    shifted = shapely.transform(area, lambda xy_px0: xy_px0 - corner_px0)
    drawn = rasterise(shifted, (window.shape[0], window.shape[1]), (CELL_PX0, CELL_PX0))
    if drawn.any():
        widened = binary_fill_holes(distance_transform_edt(~drawn) < reach)
        window[:], _ = label(widened, structure=np.ones((3, 3)))
    return mask


def isolated_tumour_cells(mask: Labels, mpp: float = MPP) -> frozenset[int]:
    """The labels of ``mask`` whose major axis is below 275 µm.

    That axis is of the ellipse with the lesion's second moments: four standard deviations of its cells' centres.
    """
    y, x = np.nonzero(mask)
    whose = mask[y, x]
    count = np.maximum(np.bincount(whose), 1)  # (L + 1,), the first for no lesion
    deviations = [v - (np.bincount(whose, v) / count)[whose] for v in (x, y)]
    xx, xy, yy = (
        np.bincount(whose, deviations[i] * deviations[j]) / count for i, j in ((0, 0), (0, 1), (1, 1))
    )  # (L + 1,) each
    largest = (xx + yy) / 2 + np.sqrt(((xx - yy) / 2) ** 2 + xy**2)  # eigenvalue
    short = 4 * np.sqrt(largest) < _ISOLATED_UM / (mpp * CELL_PX0)
    return frozenset((1 + np.flatnonzero(short[1:])).tolist())


def slide_froc(probability: Float32, xy_px0: Int64, mask: Labels, isolated: Collection[int] = ()) -> SlideFroc:
    """Detections (n,) with their places (n, 2) against the lesions of ``mask``; a normal slide's mask is 0 throughout.

    Probabilities are above 0, as 0 stands for a missed lesion. A detection beside the slide is a false positive; one
    in isolated tumour cells is nothing.
    """
    column, row = xy_px0[:, 0] // CELL_PX0, xy_px0[:, 1] // CELL_PX0
    on_slide = (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
    hit = np.zeros(len(probability), np.int64)
    hit[on_slide] = mask[row[on_slide], column[on_slide]]
    lesions = np.zeros(1 + int(mask.max(initial=0)), np.float32)
    np.maximum.at(lesions, hit, probability)
    lesions[[0, *isolated]] = 0
    return SlideFroc(probability[hit == 0], lesions[1:], len(lesions) - 1 - len(isolated))


def strongest(false: Float32, count: int) -> Float32:
    """What is left of a slide's false positives (n,) where more than ``count`` cannot matter, from the strongest.

    These are the strongest ``count``, those that tie with the last of them, and the next, without which their lowest
    would be the threshold that a curve leaves out. Where ``count`` is above 8 a slide, the curve up to 8 is the same.
    """
    falling = np.sort(false)[::-1]
    if len(falling) <= count:
        return falling
    return falling[: 1 + int(np.count_nonzero(falling >= falling[count - 1]))]


def froc_curve(slides: Sequence[SlideFroc]) -> tuple[Float64, Float64]:
    """False positives a slide (k,) and share of the lesions found (k,), from (0, 0) on; at least one slide.

    A point for each threshold but the lowest, which are the false positives' probabilities and the lesions' highest:
    where a lesion is missed, its 0 is the lowest. The share is NaN where there is no lesion.
    """
    false = np.sort(np.concatenate([s.false for s in slides]))
    lesions = np.sort(np.concatenate([s.lesions for s in slides]))
    thresholds = np.unique(np.concatenate([false, lesions]))[:0:-1]  # falling, without the lowest
    reached = [np.append(0, len(all_) - np.searchsorted(all_, thresholds)) for all_ in (false, lesions)]
    targets = sum(s.targets for s in slides)
    return reached[0] / len(slides), reached[1] / (targets or math.nan)


def sensitivities(false_rate: Float64, found: Float64) -> Float64:
    """The curve at ``RATES``, (6,): straight between its points, level beyond the last."""
    return np.interp(RATES, false_rate, found)


def froc_score(false_rate: Float64, found: Float64) -> float:
    """The challenge's one number: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide."""
    return float(sensitivities(false_rate, found).mean())
