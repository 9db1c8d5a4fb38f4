"""Tissue by colour: Otsu's threshold on the saturation, cleaned in µm²."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from ..errors import ConfigError
from ..types import Bool, Float32, UInt8
from . import Detector, detectors
from .clean import dilate, drop_small, fill_small
from .pen import COLOURS, ink

# Otsu divides any histogram, that of bare glass or of tissue alone too. So its two halves must lie MIN_CONTRAST
# apart, and the threshold stays where glass of no scanner reaches and tissue of every stain does.
FLOOR, CEILING, MIN_CONTRAST = 0.05, 0.10, 0.06
FAINT_FLOOR, FAINT_CEILING, FAINT_CONTRAST = 0.010, 0.016, 0.012
NEUTRAL, FAINT_NEUTRAL = 0.045, 0.012  # least difference of the channels (0..1): below it, shadow and dirt


@dataclass(frozen=True)
class OtsuDetector:
    """See ``Detector``. Otsu, IEEE Trans. Systems, Man and Cybernetics 9, 1979."""

    faint: bool
    pen: tuple[str, ...]
    pen_margin_um: float
    smooth_um: float
    min_width_um: float
    min_object_um2: float
    min_hole_um2: float

    def __call__(self, rgb: UInt8, mpp: tuple[float, float]) -> Bool:
        """Tissue (h, w)."""
        marks = ink(rgb, mpp, self.pen, self.pen_margin_um)
        light = np.moveaxis(rgb, 2, 0).astype(np.float32) / 255  # (3, h, w) in 0..1
        light[:, marks] = 1
        light = ndimage.gaussian_filter(light, (0, self.smooth_um / mpp[1], self.smooth_um / mpp[0]))
        radius_px = self.min_width_um / 2 / mpp[0], self.min_width_um / 2 / mpp[1]
        pixel_um2 = mpp[0] * mpp[1]
        tissue = _opened(_coloured(light, self.faint) & ~marks, radius_px)
        tissue = fill_small(tissue, self.min_hole_um2 / pixel_um2) & ~marks
        return drop_small(tissue, self.min_object_um2 / pixel_um2)


@detectors.register("otsu")
def otsu(
    *,
    faint: bool = False,
    pen: Sequence[str] = COLOURS,
    pen_margin_um: float = 40.0,
    smooth_um: float = 12.0,
    min_width_um: float = 24.0,
    min_object_um2: float = 20_000.0,
    min_hole_um2: float = 20_000.0,
) -> Detector:
    """Otsu on saturation; pen marks, grey shadows, fat and specks removed; ``faint`` for pale IHC."""
    lengths = {
        "pen_margin_um": pen_margin_um,
        "smooth_um": smooth_um,
        "min_width_um": min_width_um,
        "min_object_um2": min_object_um2,
        "min_hole_um2": min_hole_um2,
    }
    for name, value in lengths.items():
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(f"tissue detector 'otsu': {name} = {value!r} must be a number, 0 or more")
    return OtsuDetector(faint, (pen,) if isinstance(pen, str) else tuple(pen), **lengths)


def _coloured(light: Float32, faint: bool) -> Bool:
    """Pixels (h, w) of ``light`` (3, h, w) that a stain has coloured; ``faint``: by density, however pale."""
    chroma = light.max(axis=0) - light.min(axis=0)  # (h, w)
    if faint:
        density = _optical_density(light)
        threshold = _threshold(density, FAINT_FLOOR, FAINT_CEILING, FAINT_CONTRAST)
        pale: Bool = (density > threshold) & (chroma > FAINT_NEUTRAL)
        return pale
    saturation = chroma / np.maximum(light.max(axis=0), 1 / 255)
    stained: Bool = (saturation > _threshold(saturation, FLOOR, CEILING, MIN_CONTRAST)) & (chroma > NEUTRAL)
    return stained


def _opened(mask: Bool, radius_px: tuple[float, float]) -> Bool:
    """``mask`` without what is narrower than twice the radius: the threads of connective tissue between fat cells."""
    return dilate(~dilate(~mask, radius_px), radius_px)


def _threshold(strength: Float32, floor: float, ceiling: float, contrast: float) -> float:
    """Otsu's threshold, kept between ``floor`` and ``ceiling``; ``ceiling`` where there are no two classes."""
    split = float(threshold_otsu(strength)) if np.ptp(strength) > 0 else 0.0  # type: ignore[no-untyped-call]
    high, low = strength[strength > split], strength[strength <= split]
    if not len(high) or not len(low) or float(high.mean() - low.mean()) < contrast:
        return ceiling
    return min(max(split, floor), ceiling)


def _optical_density(light: Float32) -> Float32:
    """Mean OD of the three channels against the slide's own glass."""
    glass = np.clip(np.percentile(light, 95, axis=(1, 2)), 0.88, 1.0).astype(np.float32)  # (3,)
    density: Float32 = -np.log10(np.clip(light, 1 / 255, 1) / glass[:, None, None]).mean(axis=0)
    return density
