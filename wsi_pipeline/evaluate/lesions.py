"""The lesions of one slide that a FROC has to detect, from its outlines and its label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from shapely.geometry import MultiPolygon

from ..types import PatchGrid
from .froc import MPP, Labels, evaluation_mask, isolated_tumour_cells

UNREADABLE = "unreadable annotation"
_MPP_TOLERANCE = 0.1  # relative; CAMELYON16's two scanners, with 0.243 and 0.226 µm/px, are both treated as 0.243


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions 1..L of one slide; a normal slide has none."""

    mask: Labels  # (rows, columns) of cells, see ``froc.evaluation_mask``
    isolated: frozenset[int]  # lesions that are isolated tumour cells

    @property
    def targets(self) -> int:
        """Number of lesions to detect."""
        return int(self.mask.max(initial=0)) - len(self.isolated)


def lesions_of(area: MultiPolygon | None, grid: PatchGrid, label: str | None, negative: str) -> Lesions | str:
    """The lesions of a slide, or one line with the reason why they are unknown.

    Parameters
    ----------
    area : MultiPolygon or None
        The outlines in level-0 pixels, exclusions already subtracted; None: there is no annotation.
    grid : PatchGrid
        Its slide size and resolution are used.
    label : str or None
    negative : str
        The class whose slides have no lesion.

    Returns
    -------
    Lesions or str
        A slide labelled ``negative`` without an outlined target is normal. With one, label and outlines disagree (or
        the outlines show the other class), and the lesions are unknown.
    """
    normal = label == negative
    if area is None:
        empty = Lesions(np.zeros((0, 0), np.int32), frozenset())
        return empty if normal else f"no annotation, and not labelled {negative}"
    mpp = _mpp(grid.mpp)
    mask = evaluation_mask(area, grid.slide_size_px0, mpp)
    found = Lesions(mask, isolated_tumour_cells(mask, mpp))
    if normal and found.targets:
        return f"labelled {negative}, with a lesion in the annotation"
    return found if normal or mask.any() else "no lesion in the annotation"


def _mpp(mpp: tuple[float, float]) -> float:
    """The resolution that the challenge uses for all its slides where the slide's own is close to it; else its own."""
    mean = sum(mpp) / 2
    return MPP if abs(mean / MPP - 1) <= _MPP_TOLERANCE else mean
