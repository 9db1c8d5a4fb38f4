"""From a map to a list of detections: its peaks, none near a stronger one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from ..types import Float32, Int64, PatchGrid

_ROUNDING = 1 + 1e-9  # of a distance that is the radius but for the last digits


class Detections(NamedTuple):
    """n points, from the strongest."""

    probability: Float32  # (n,) above 0
    xy_px0: Int64  # (n, 2)


def detections(scores: Float32, grid: PatchGrid, radius_um: float) -> Detections:
    """The patches that score above 0 and have no stronger one within ``radius_um``, centre to centre.

    ``scores`` (N,). Greedy: the strongest patch is kept and those around it are not, then the strongest that is left,
    and so on; of equals, the first in the grid. A place is the pixel that holds the patch's centre. A score of 0 or
    below says nothing for the class, so it is no detection. O(N log N) as long as few patches lie in a radius.
    """
    strongest = np.argsort(-scores, kind="stable")
    order = strongest[scores[strongest] > 0]
    centres_um = grid.centre_px0[order] * np.asarray(grid.mpp)
    tree = KDTree(centres_um) if len(order) else None
    open_, kept = np.ones(len(order), np.bool_), []
    for i in range(len(order)):
        if open_[i] and tree is not None:
            kept.append(i)
            open_[tree.query_ball_point(centres_um[i], radius_um * _ROUNDING)] = False
    rows = order[kept]
    return Detections(scores[rows], np.floor(grid.centre_px0[rows]).astype(np.int64))


def detections_csv(found: Detections) -> str:
    """The challenge's file for one slide: probability, x, y in level-0 pixels, no header; no digit is lost."""
    rows = zip(found.probability.tolist(), found.xy_px0.tolist(), strict=True)
    return "".join(f"{p!r},{x},{y}\n" for p, (x, y) in rows)
