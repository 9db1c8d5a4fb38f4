"""Tissue detection by colour: Otsu's threshold on the saturation, cleaned by area in µm²."""

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

# Otsu divides any histogram, even of bare glass or of tissue alone. Therefore its two classes must be MIN_CONTRAST
# apart, and the threshold is limited to values that no scanner's glass reaches and that tissue of every stain exceeds.
FLOOR, CEILING, MIN_CONTRAST = 0.05, 0.10, 0.06
FAINT_FLOOR, FAINT_CEILING, FAINT_CONTRAST = 0.010, 0.016, 0.012
NEUTRAL, FAINT_NEUTRAL = 0.045, 0.012  # least difference of the channels (0..1): below it, shadow and dirt


@dataclass(frozen=True)
class OtsuDetector:
    """A ``Detector``; for the options see ``otsu``. Otsu, IEEE Trans. Systems, Man and Cybernetics 9, 1979."""

    faint: bool
    pen: tuple[str, ...]
    pen_margin_um: float
    smooth_um: float
    min_width_um: float
    min_object_um2: float
    min_hole_um2: float

    def __call__(self, rgb: UInt8, mpp: tuple[float, float]) -> Bool:
        """See ``Detector``."""
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
    """Otsu on saturation; pen marks, grey shadows, fat and specks removed; ``faint`` for pale IHC.

    Parameters
    ----------
    faint : bool
        Threshold the optical density instead, for pale stains.
    pen : sequence of {"blue", "green", "red", "black"}
        Colours of pen ink to remove.
    pen_margin_um : float
        Margin around ink that is removed too, µm.
    smooth_um : float
        Standard deviation of the Gaussian filter, µm.
    min_width_um : float
        Narrower structures are removed, µm.
    min_object_um2, min_hole_um2 : float
        Smaller pieces of tissue are removed, and smaller holes filled, µm².

    Returns
    -------
    Detector
        The tissue detector.

    Raises
    ------
    ConfigError
        An option is not valid.
    """
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
    """Stained pixels (h, w) of ``light`` (3, h, w); ``faint``: by optical density instead of saturation."""
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
    """``mask`` without structures narrower than twice the radius, such as the strands between fat cells."""
    return dilate(~dilate(~mask, radius_px), radius_px)


def _threshold(strength: Float32, floor: float, ceiling: float, contrast: float) -> float:
    """Otsu's threshold, limited to ``floor`` and ``ceiling``; ``ceiling`` if there are no two distinct classes."""
    split = float(threshold_otsu(strength)) if np.ptp(strength) > 0 else 0.0  # type: ignore[no-untyped-call]
    high, low = strength[strength > split], strength[strength <= split]
    if not len(high) or not len(low) or float(high.mean() - low.mean()) < contrast:
        return ceiling
    return min(max(split, floor), ceiling)


def _optical_density(light: Float32) -> Float32:
    """Mean OD (h, w) of the three channels relative to the slide's own glass."""
    glass = np.clip(np.percentile(light, 95, axis=(1, 2)), 0.88, 1.0).astype(np.float32)  # (3,)
    density: Float32 = -np.log10(np.clip(light, 1 / 255, 1) / glass[:, None, None]).mean(axis=0)
    return density
