"""Tissue detection, and the grid of patches on the tissue.

A tissue detector is a plug-in of ``detectors``: its factory takes keyword-only options and returns a ``Detector``.
"""

from __future__ import annotations

from typing import Protocol

from ..registry import Registry
from ..types import Bool, UInt8


class Detector(Protocol):
    """A tissue detector, as every factory of ``detectors`` returns it."""

    def __call__(self, rgb: UInt8, mpp: tuple[float, float]) -> Bool:
        """Find the tissue on an overview of a slide.

        Parameters
        ----------
        rgb : ndarray of uint8, (h, w, 3)
            The overview.
        mpp : (float, float)
            Width and height of its pixels in µm.

        Returns
        -------
        ndarray of bool, (h, w)
            True where there is tissue.
        """
        ...


detectors: Registry[Detector] = Registry("tissue detector", "wsi_pipeline.tile")
