"""Reader for every format that OpenSlide opens, DICOM included."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from ..errors import RegionError, SlideError
from ..types import Box, UInt8
from .resolution import openslide_claims
from .slide import Backend, readers


class OpenSlideFile:
    """An OpenSlide handle, replaced after each error: OpenSlide refuses further reads on a handle with an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _open(path)
        self._lock = threading.Lock()
        self.vendor = self._handle.properties[openslide.PROPERTY_NAME_VENDOR]
        self.sizes = self._handle.level_dimensions
        self.downsamples = self._handle.level_downsamples
        self.bounds_px0 = _bounds(self._handle.properties, self.sizes[0])
        self.claims = openslide_claims(self._handle.properties)

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        handle = self._handle
        try:
            return _over_white(handle.read_region(xy_px0, level, size))
        except openslide.OpenSlideError:
            return self._read_on_new_handle(handle, xy_px0, level, size)

    def close(self) -> None:
        self._handle.close()

    def _read_on_new_handle(
        self, poisoned: openslide.OpenSlide, xy_px0: tuple[int, int], level: int, size: tuple[int, int]
    ) -> UInt8:
        """Read again on a separate handle: only this distinguishes a bad region from another thread's error.

        A poisoned handle is dropped, not closed: other threads may still be using it.
        """
        try:
            with self._lock:
                if self._handle is poisoned:
                    self._handle = _open(self._path)
            own = _open(self._path)
        except SlideError as error:
            raise SlideError(f"{self._path} can no longer be opened ({error}); is its disk still there?") from error
        try:
            return _over_white(own.read_region(xy_px0, level, size))
        except openslide.OpenSlideError as error:
            x, y = xy_px0
            raise RegionError(
                f"{self._path.name}: level {level}, {size[0]} x {size[1]} px at ({x}, {y}) cannot be decoded "
                f"({error}); copy the slide again if the original is intact"
            ) from error
        finally:
            own.close()


@readers.register("openslide")
def openslide_file(path: Path) -> Backend:
    """SVS, NDPI, MRXS, SCN, BIF, VMS, Philips and generic tiled TIFF, DICOM and every other OpenSlide format."""
    return OpenSlideFile(path)


def _open(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(" ".join(str(error).split())) from error


def _bounds(properties: Mapping[str, str], size: tuple[int, int]) -> Box:
    """``openslide.bounds-*`` if all four are present, clipped to the slide; else the whole slide."""
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return 0, 0, *size
    return x, y, min(width, size[0] - x), min(height, size[1] - y)


def _over_white(region: Image.Image) -> UInt8:
    """RGBA -> RGB; regions that the scanner left out are transparent, and become white."""
    if region.getchannel("A").getextrema() == (255, 255):
        return np.asarray(region.convert("RGB"))
    white = Image.new("RGB", region.size, (255, 255, 255))
    white.paste(region, mask=region.getchannel("A"))
    return np.asarray(white)
