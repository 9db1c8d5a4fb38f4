"""The slide that every room reads from: the public ``read`` checks and pads, a reader's own ``read`` only reads."""

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
    """What a reader gives: the file's facts, and pixels of regions that lie wholly inside it.

    A factory takes the path and raises ``SlideError`` with the bare reason where it cannot open the file.
    """

    vendor: str
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each level, largest first
    downsamples: tuple[float, ...]
    bounds_px0: Box
    claims: tuple[Claim, ...]  # resolutions that the file states, the best first

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """Pixels (height, width, 3), transparent ones white. Thread-safe.

        Raises ``RegionError`` where they cannot be decoded, and can be read again afterwards.
        """
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


readers: Registry[Backend] = Registry("reader", "wsi_pipeline.read")


def open_slide(path: str | os.PathLike[str], config: ReadConfig, mpp: float | None = None) -> CheckedSlide:
    """Open a slide; ``mpp``: µm per pixel of level 0 as the manifest gives it.

    Raises ``SlideError`` with one line where no reader opens it or nothing says how large a pixel is.
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
    """The stored tiles of each level of ``slide``, for those who read many patches; empty where there are none."""
    return slide.tiles if isinstance(slide, CheckedSlide) else ()


class CheckedSlide:
    """A ``types.Slide`` over a backend: checks what is asked for and pads what lies outside with white."""

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
        self.rejected_readers = rejected_readers  # readers that were tried before, and why they could not
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
        """The stored tiles of each level; empty where the reader has none to give."""
        return getattr(self._backend, "levels", ())

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """See ``types.Slide``. The region starts at the level pixel that ``xy_px0`` falls on, to the nearest."""
        if self._backend is None:
            raise ValueError(f"{self.path} is closed")
        if not 0 <= level < len(self.sizes) or min(size) < 1:
            raise ValueError(f"no region of {size} pixels at level {level}: the levels are {self.sizes}")
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
        """Give the file back. Reading afterwards is an error."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
