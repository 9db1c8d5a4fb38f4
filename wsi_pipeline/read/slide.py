"""The slide that every stage reads from: the public ``read`` checks and pads, a backend's own ``read`` only reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from ..config import ReadConfig
from ..errors import SlideError
from ..registry import Registry
from ..types import Box, Slide, UInt8
from .diagnose import check_file, diagnose
from .jpeg_tiles import TileLevel
from .overview import read_overview
from .resolution import Claim, resolve_mpp

AUTO = ("jpeg_tiff", "openslide", "image")  # tried in this order


class Backend(Protocol):
    """What a reader plug-in returns: the file's metadata, and pixels of regions that lie entirely inside the slide.

    A factory takes the path and raises ``SlideError`` with only the reason if it cannot open the file. The attributes
    are those of ``types.Slide``; ``claims`` are the resolutions that the file states, the most reliable first.
    """

    vendor: str
    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    bounds_px0: Box
    claims: tuple[Claim, ...]

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """Pixels (height, width, 3), transparent ones white. Thread-safe.

        Raises ``RegionError`` if they cannot be decoded; the backend stays usable.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


readers: Registry[Backend] = Registry("reader", "wsi_pipeline.read")


def open_slide(path: str | os.PathLike[str], config: ReadConfig, mpp: float | None = None) -> CheckedSlide:
    """Open a slide.

    Parameters
    ----------
    path : str or os.PathLike
        The slide file.
    config : ReadConfig
        The config section ``read``: reader and resolution.
    mpp : float, optional
        µm per level-0 pixel from the manifest; takes precedence over the config and the file.

    Returns
    -------
    CheckedSlide
        The open slide, a context manager.

    Raises
    ------
    SlideError
        No reader opens the file, or its resolution is not known; the message is one line.
    """
    path = Path(path)
    check_file(path)
    names = AUTO if config.reader == "auto" else (config.reader,)
    reasons = []
    for name in names:
        try:
            backend = readers.build(name, path)
        except SlideError as error:
            reasons.append(f"{name}: {error}")
            continue
        try:
            found, source = resolve_mpp(path, mpp, config, backend.claims)
        except SlideError:
            backend.close()
            raise
        return CheckedSlide(path, name, backend, found, source, tuple(reasons))
    raise SlideError(f"{path} cannot be opened: {diagnose(path)} ({'; '.join(reasons)})")


def tile_levels(slide: Slide) -> tuple[TileLevel, ...]:
    """Stored tiles of each level of ``slide``, for reading many patches; empty if the reader has no access to them."""
    return slide.tiles if isinstance(slide, CheckedSlide) else ()


class CheckedSlide:
    """A ``types.Slide`` over a backend: checks arguments, and pads with white outside the slide."""

    def __init__(
        self,
        path: Path,
        reader: str,
        backend: Backend,
        mpp: tuple[float, float],
        mpp_source: str,
        rejected_readers: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.rejected_readers = rejected_readers
        self.reader = reader
        self.vendor = backend.vendor
        self.sizes = backend.sizes
        self.downsamples = backend.downsamples
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.bounds_px0 = backend.bounds_px0
        self._backend: Backend | None = backend

    def __repr__(self) -> str:
        (width, height), (x, y) = self.sizes[0], self.mpp
        levels = "1 level" if len(self.sizes) == 1 else f"{len(self.sizes)} levels"
        return f"<slide {self.path.name}: {width} x {height} px, {x:.4g} x {y:.4g} µm/px, {levels}, {self.vendor}>"

    @property
    def tiles(self) -> tuple[TileLevel, ...]:
        """Stored tiles of each level; empty if the reader has no access to them."""
        return getattr(self._backend, "levels", ())

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """See ``types.Slide``. The region starts at the level pixel nearest to ``xy_px0``."""
        if self._backend is None:
            raise ValueError(f"{self.path} is closed")
        if not 0 <= level < len(self.sizes) or min(size) < 1:
            raise ValueError(f"invalid region of {size} pixels at level {level}: the levels are {self.sizes}")
        start = [round(c / self.downsamples[level]) for c in xy_px0]
        low = [max(s, 0) for s in start]
        high = [min(s + n, extent) for s, n, extent in zip(start, size, self.sizes[level], strict=True)]
        inside = high[0] - low[0], high[1] - low[1]
        corner = max(xy_px0[0], 0), max(xy_px0[1], 0)
        if inside == tuple(size):
            return self._backend.read(corner, level, inside)
        pixels = np.full((size[1], size[0], 3), 255, np.uint8)
        if min(inside) > 0:
            x, y = low[0] - start[0], low[1] - start[1]
            pixels[y : y + inside[1], x : x + inside[0]] = self._backend.read(corner, level, inside)
        return pixels

    def thumbnail(self, max_px: int = 1024) -> UInt8:
        """Read the whole slide, (h, w, 3) RGB, at most ``max_px`` pixels on the longer side."""
        return read_overview(self, max_px=max_px).rgb

    def close(self) -> None:
        """Close the file. Reading afterwards is an error."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
