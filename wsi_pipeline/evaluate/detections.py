"""From a map to a list of detections: its local maxima, by non-maximum suppression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from ..types import Float32, Int64, PatchGrid

_ROUNDING = 1 + 1e-9  # tolerance for distances that equal the radius up to rounding


class Detections(NamedTuple):
    """n detections, from the highest score."""

    probability: Float32  # (n,) scores above 0; probabilities where the map has them
    xy_px0: Int64  # (n, 2) centres in level-0 pixels


def detections(scores: Float32, grid: PatchGrid, radius_um: float) -> Detections:
    """Non-maximum suppression of the patches with scores above 0.

    Parameters
    ----------
    scores : array (N,)
        One per patch. A score of 0 or below gives no detection: it is not evidence for the class.
    grid : PatchGrid
    radius_um : float
        Around a kept patch all weaker ones are suppressed, by the distance of the centres in µm.

    Returns
    -------
    Detections
        Greedy: the highest score is kept, then the highest of those not suppressed, and so on; ties in the order of
        the grid. A detection is located at the pixel that contains the centre of its patch.

    Notes
    -----
    O(N log N) as long as few patches lie within the radius.
    """
    falling = np.argsort(-scores, kind="stable")
    order = falling[scores[falling] > 0]
    centres_um = grid.centre_px0[order] * np.asarray(grid.mpp)
    tree = KDTree(centres_um) if len(order) else None
    remaining, kept = np.ones(len(order), np.bool_), []
    for i in range(len(order)):
        if remaining[i] and tree is not None:
            kept.append(i)
            remaining[tree.query_ball_point(centres_um[i], radius_um * _ROUNDING)] = False
    rows = order[kept]
    return Detections(scores[rows], np.floor(grid.centre_px0[rows]).astype(np.int64))


def detections_csv(found: Detections) -> str:
    """CAMELYON16's file for one slide: probability, x, y in level-0 pixels, without header and without rounding."""
    rows = zip(found.probability.tolist(), found.xy_px0.tolist(), strict=True)
    return "".join(f"{p!r},{x},{y}\n" for p, (x, y) in rows)
