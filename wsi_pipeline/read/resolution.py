"""Resolution of level 0 in micrometres per pixel, and where it is stated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import ReadConfig
from ..errors import SlideError

PLAUSIBLE_UM = (0.05, 20.0)  # from beyond the finest objective to a flatbed scan of the whole glass

# Written by programs that do not know the microscope's resolution: for screens, printers, flatbed scanners, defaults.
PRINTER_DPI = (72, 75, 96, 100, 120, 144, 150, 180, 200, 240, 254, 300, 350, 360, 400, 600, 720, 1200, 2400, 4800)

UM_PER_INCH, UM_PER_CM = 25_400.0, 10_000.0


@dataclass(frozen=True)
class Claim:
    """A resolution that the file states.

    Attributes
    ----------
    mpp : (float, float)
        µm per level-0 pixel, (x, y).
    source : str
        The property that states it.
    """

    mpp: tuple[float, float]
    source: str


def resolve_mpp(
    path: Path, manifest: float | None, config: ReadConfig, claims: Sequence[Claim]
) -> tuple[tuple[float, float], str]:
    """Find a slide's resolution: the manifest, then ``read.mpp``, then the first plausible claim of the file.

    Parameters
    ----------
    path : Path
        The slide, for the error message.
    manifest : float, optional
        µm per level-0 pixel from the manifest.
    config : ReadConfig
        The config section ``read``.
    claims : sequence of Claim
        Resolutions that the file states, the most reliable first.

    Returns
    -------
    mpp : (float, float)
        µm per level-0 pixel, (x, y).
    source : str
        Where it was found.

    Raises
    ------
    SlideError
        No resolution was found; names the implausible claims and how to give the resolution.
    """
    if manifest is not None:
        return (manifest, manifest), "manifest"
    if isinstance(config.mpp, tuple):
        return config.mpp, "read.mpp"
    if config.mpp is not None:
        return (config.mpp, config.mpp), "read.mpp"
    doubts = []
    for claim in claims:
        doubt = implausible(claim)
        if doubt is None:
            return claim.mpp, claim.source
        doubts.append(f"{claim.source} {doubt}")
    found = "; ".join(doubts) or "openslide.mpp-x and TIFF resolution tags are absent"
    raise SlideError(
        f"{path.name} has no resolution ({found}); give it in the manifest's mpp column or --set read.mpp=0.25 "
        "(`wsi info --mpp 0.25`; in Python: open_slide(path, mpp=0.25))"
    )


def implausible(claim: Claim) -> str | None:
    """Why a claim is not a microscope's resolution; None if it is plausible."""
    low, high = PLAUSIBLE_UM
    for mpp in claim.mpp:
        if not (math.isfinite(mpp) and mpp > 0):
            return "is not a resolution"
        dpi = UM_PER_INCH / mpp
        if any(abs(dpi - known) < 0.005 * known for known in PRINTER_DPI):
            return f"means {dpi:.0f} dpi, the resolution of a screen or printer"
        if not low <= mpp <= high:
            return f"means {mpp:.4g} µm/px, not the resolution of a microscope"
    return None


def openslide_claims(properties: Mapping[str, str]) -> tuple[Claim, ...]:
    """Resolutions that OpenSlide's properties state, the most reliable first."""
    claims = [
        _pair(properties, "openslide.mpp-x", "openslide.mpp-y"),
        _pair(properties, "aperio.MPP", "aperio.MPP"),
        tiff_claim(
            _number(properties, "tiff.XResolution"),
            _number(properties, "tiff.YResolution"),
            properties.get("tiff.ResolutionUnit", ""),
        ),
    ]
    magnification = _number(properties, "aperio.AppMag")
    if magnification:
        claims.append(Claim((10 / magnification,) * 2, f"aperio.AppMag {magnification:g}, nominal 10/magnification"))
    return tuple(c for c in claims if c is not None)


def tiff_claim(x: float | None, y: float | None, unit: str) -> Claim | None:
    """TIFF's XResolution and YResolution (pixels per ``unit``); None without a unit of length."""
    um = {"inch": UM_PER_INCH, "centimeter": UM_PER_CM}.get(unit)
    if not (x and y and um):
        return None
    return Claim((um / x, um / y), f"TIFF resolution tag ({unit})")


def _pair(properties: Mapping[str, str], x: str, y: str) -> Claim | None:
    values = _number(properties, x), _number(properties, y)
    if values[0] is None or values[1] is None:
        return None
    return Claim((values[0], values[1]), x)


def _number(properties: Mapping[str, str], name: str) -> float | None:
    try:
        return float(properties[name])
    except (KeyError, ValueError):
        return None
