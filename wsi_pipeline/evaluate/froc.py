"""The free-response ROC of CAMELYON16: the fraction of lesions detected over false positives per slide.

Ehteshami Bejnordi et al., JAMA 2017, and the evaluation code that the challenge published, rule by rule: outlines are
dilated by 37.5 µm, outlines that then touch are one lesion, and lesions below 275 µm are isolated tumour cells, which
count neither as targets nor as false positives. A detection hits the lesion it lies in, or is a false positive.
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

MPP = 0.243  # µm per pixel of level 0, used by the challenge for all its slides
CELL_PX0 = 32  # a cell of the mask is a pixel of level 5
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per slide at which sensitivities are averaged
_WIDENED_UM, _ISOLATED_UM = 75 / 2, 275.0

Labels = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SlideFroc:
    """The detections of one slide matched with its lesions."""

    false_positives: Float32  # (n,) their probabilities
    lesions: Float32  # (L,) highest probability in each lesion; 0 where it is missed, or is isolated tumour cells
    targets: int  # number of lesions to detect: all but isolated tumour cells


def evaluation_mask(area: MultiPolygon, slide_size_px0: tuple[int, int], mpp: float = MPP) -> Labels:
    """Raster of a slide's lesions.

    Parameters
    ----------
    area : MultiPolygon
        The outlines in level-0 pixels, exclusions already subtracted.
    slide_size_px0 : (int, int)
        (width, height).
    mpp : float
        µm per level-0 pixel; the challenge uses 0.243 for every scanner.

    Returns
    -------
    int32 array (rows, columns)
        Lesions 1..L and 0 elsewhere, in cells of 32 x 32 level-0 pixels. A cell is in an outline where its centre is,
        so an outline between all centres is not a lesion. Cells less than 37.5 µm away are added, holes are filled,
        and cells that touch, even at a corner, are one lesion.
    """
    width, height = (math.ceil(extent / CELL_PX0) for extent in slide_size_px0)
    mask = np.zeros((height, width), np.int32)
    if area.is_empty:
        return mask
    reach = _WIDENED_UM / (mpp * CELL_PX0)  # cells
    left, top, right, bottom = np.asarray(area.bounds) / CELL_PX0
    margin = math.ceil(reach) + 1  # contains the dilation and one free cell, so the rest of the slide is not needed
    rows, columns = (
        slice(max(math.floor(low) - margin, 0), min(math.ceil(high) + margin, extent))
        for low, high, extent in ((top, bottom, height), (left, right, width))
    )
    window = mask[rows, columns]
    corner_px0 = np.array([columns.start, rows.start]) * CELL_PX0
    shifted = shapely.transform(area, lambda xy_px0: xy_px0 - corner_px0)
    drawn = rasterise(shifted, (window.shape[0], window.shape[1]), (CELL_PX0, CELL_PX0))
    if drawn.any():
        dilated = binary_fill_holes(distance_transform_edt(~drawn) < reach)
        window[:], _ = label(dilated, structure=np.ones((3, 3)))
    return mask


def isolated_tumour_cells(mask: Labels, mpp: float = MPP) -> frozenset[int]:
    """The labels of ``mask`` (see ``evaluation_mask``) whose major axis is below 275 µm.

    The axis is that of the ellipse with the lesion's second moments: four standard deviations of its cells' centres.
    """
    y, x = np.nonzero(mask)
    lesion = mask[y, x]
    count = np.maximum(np.bincount(lesion), 1)  # (L + 1,), the first is the background
    deviations = [v - (np.bincount(lesion, v) / count)[lesion] for v in (x, y)]
    xx, xy, yy = (
        np.bincount(lesion, deviations[i] * deviations[j]) / count for i, j in ((0, 0), (0, 1), (1, 1))
    )  # (L + 1,) each
    largest = (xx + yy) / 2 + np.sqrt(((xx - yy) / 2) ** 2 + xy**2)  # eigenvalue
    short = 4 * np.sqrt(largest) < _ISOLATED_UM / (mpp * CELL_PX0)
    return frozenset((1 + np.flatnonzero(short[1:])).tolist())


def slide_froc(probability: Float32, xy_px0: Int64, mask: Labels, isolated: Collection[int] = ()) -> SlideFroc:
    """Match the detections of one slide with its lesions.

    Parameters
    ----------
    probability : array (n,)
        Above 0, since 0 denotes a missed lesion.
    xy_px0 : array (n, 2)
        Positions in level-0 pixels. A detection outside the slide is a false positive.
    mask : int32 array (rows, columns)
        See ``evaluation_mask``; all 0 for a normal slide.
    isolated : collection of int
        Lesions that are isolated tumour cells; a detection in them is ignored.

    Returns
    -------
    SlideFroc
    """
    column, row = xy_px0[:, 0] // CELL_PX0, xy_px0[:, 1] // CELL_PX0
    on_slide = (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
    hit = np.zeros(len(probability), np.int64)
    hit[on_slide] = mask[row[on_slide], column[on_slide]]
    lesions = np.zeros(1 + int(mask.max(initial=0)), np.float32)
    np.maximum.at(lesions, hit, probability)
    lesions[[0, *isolated]] = 0
    return SlideFroc(probability[hit == 0], lesions[1:], len(lesions) - 1 - len(isolated))


def strongest(false_positives: Float32, count: int) -> Float32:
    """The highest ``count`` false positives (n,) of a slide, sorted, such that the curve up to there is unchanged.

    Includes ties with the last of them and the next lower one, without which the last would be the lowest threshold,
    which a curve leaves out. Where ``count`` is above 8 per slide, the curve up to 8 false positives per slide is the
    same as that of all.
    """
    falling = np.sort(false_positives)[::-1]
    if len(falling) <= count:
        return falling
    return falling[: 1 + int(np.count_nonzero(falling >= falling[count - 1]))]


def froc_curve(slides: Sequence[SlideFroc]) -> tuple[Float64, Float64]:
    """The FROC curve over one or more slides, from (0, 0).

    Returns
    -------
    false_rate : array (k,)
        False positives per slide.
    sensitivity : array (k,)
        Fraction of the lesions detected; NaN where there is no lesion.

    Notes
    -----
    Thresholds are the probabilities of the false positives and the highest probability in each lesion, except the
    lowest of all, as in the challenge's code. Where a lesion is missed, its 0 is the lowest.
    """
    false_positives = np.sort(np.concatenate([s.false_positives for s in slides]))
    lesions = np.sort(np.concatenate([s.lesions for s in slides]))
    thresholds = np.unique(np.concatenate([false_positives, lesions]))[:0:-1]  # falling, without the lowest
    reached = [np.append(0, len(all_) - np.searchsorted(all_, thresholds)) for all_ in (false_positives, lesions)]
    targets = sum(s.targets for s in slides)
    return reached[0] / len(slides), reached[1] / (targets or math.nan)


def sensitivities(false_rate: Float64, sensitivity: Float64) -> Float64:
    """The sensitivities (6,) of a curve at ``RATES``: linear between its points, constant beyond the last."""
    return np.interp(RATES, false_rate, sensitivity)


def froc_score(false_rate: Float64, sensitivity: Float64) -> float:
    """The challenge's score: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide."""
    return float(sensitivities(false_rate, sensitivity).mean())
