"""Tissue on an overview of the slide: what the detector finds, less what could not be decoded."""

from __future__ import annotations

import math

import numpy as np

from ..config import TileConfig
from ..errors import ConfigError
from ..read import Overview
from ..types import Bool
from . import detectors


def detect_tissue(overview: Overview, mpp: tuple[float, float], config: TileConfig) -> Bool:
    """Find tissue with the configured detector.

    Parameters
    ----------
    overview : Overview
        The slide at ``config.tissue_mpp``.
    mpp : (float, float)
        µm per pixel of level 0, (x, y).
    config : TileConfig
        Names the detector and its options.

    Returns
    -------
    ndarray of bool, (h, w)
        True where there is tissue; False in regions that could not be decoded.

    Raises
    ------
    ConfigError
        There is no such detector or option, or its mask does not have one value per pixel.
    """
    detector = detectors.build(config.detector, **config.detector_options)
    raster_mpp = mpp[0] * overview.side_px0[0], mpp[1] * overview.side_px0[1]
    found = np.asarray(detector(overview.rgb, raster_mpp), bool)
    if found.shape != overview.rgb.shape[:2]:
        raise ConfigError(
            f"tissue detector {config.detector!r} returns a mask of {found.shape} for a raster of "
            f"{overview.rgb.shape[:2]}; it must return one value per pixel"
        )
    return without_unreadable(found, overview)


def without_unreadable(tissue: Bool, overview: Overview) -> Bool:
    """``tissue`` (h, w) without the pixels that touch an unreadable region."""
    kept = tissue.copy()
    (side_x, side_y) = overview.side_px0
    for x, y, width, height in overview.unreadable_px0:
        rows = slice(math.floor(y / side_y), math.ceil((y + height) / side_y))
        kept[rows, math.floor(x / side_x) : math.ceil((x + width) / side_x)] = False
    return kept
