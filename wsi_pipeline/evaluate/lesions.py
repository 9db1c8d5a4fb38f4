"""What a FROC has to find on one slide: the lesions that its outlines and its label speak of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from shapely.geometry import MultiPolygon

from ..types import PatchGrid
from .froc import MPP, Labels, evaluation_mask, isolated_tumour_cells

UNREADABLE = "unreadable annotation"
_ONE_SCANNER = 0.1  # relative; CAMELYON16's two scanners, of 0.243 and 0.226 µm/px, are both taken for 0.243


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions 1..L of one slide; a normal one has none."""

    mask: Labels  # (rows, columns) of cells, see ``froc.evaluation_mask``
    isolated: frozenset[int]  # lesions that do not count

    @property
    def targets(self) -> int:
        """How many are to be found."""
        return int(self.mask.max(initial=0)) - len(self.isolated)


def lesions_of(area: MultiPolygon | None, grid: PatchGrid, label: str | None, negative: str) -> Lesions | str:
    """The lesions of a slide; or, in one line, why it can neither have nor lack one.

    ``area``: the outlines in px0, without exclusions; None: there is no annotation. ``negative``: the class whose
    slides have no lesion. A slide that is labelled so and has none outlined is normal. Where one that counts is
    outlined all the same, label and outlines disagree, or the outlines show the other class.
    """
    normal = label == negative
    if area is None:
        none = Lesions(np.zeros((0, 0), np.int32), frozenset())
        return none if normal else f"no annotation, and not labelled {negative}"
    mpp = _mpp(grid.mpp)
    mask = evaluation_mask(area, grid.slide_size_px0, mpp)
    found = Lesions(mask, isolated_tumour_cells(mask, mpp))
    if normal and found.targets:
        return f"labelled {negative}, with a lesion in the annotation"
    return found if normal or mask.any() else "no lesion in the annotation"


def _mpp(mpp: tuple[float, float]) -> float:
    """What the challenge takes for all its slides, where the slide's own is near it; else the slide's own."""
    mean = sum(mpp) / 2
    return MPP if abs(mean / MPP - 1) <= _ONE_SCANNER else mean
