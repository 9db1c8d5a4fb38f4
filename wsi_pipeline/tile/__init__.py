"""Where the tissue is, and the grid of patches on it.

A tissue detector is a plug-in of ``detectors``: its factory takes keyword-only options and returns a ``Detector``.
"""

from __future__ import annotations

from typing import Protocol

from ..registry import Registry
from ..types import Bool, UInt8


class Detector(Protocol):
    """What every factory of ``detectors`` returns."""

    def __call__(self, rgb: UInt8, mpp: tuple[float, float]) -> Bool:
        """Tissue (h, w) on the raster ``rgb`` (h, w, 3), whose pixels are ``mpp`` = (x, y) µm wide and high."""
        ...


detectors: Registry[Detector] = Registry("tissue detector", "wsi_pipeline.tile")
