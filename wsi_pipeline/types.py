"""What passes through the doors between the rooms. Read this first.

Frame: a coordinate is (x, y), top-left, in level-0 pixels of the full slide, and its name ends in ``_px0``,
unless the name says otherwise. Arrays are (rows, columns). ``mpp`` is micrometres per pixel, (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

Unit = Literal["attention", "probability", "value", "risk", "attribution", "fraction", "distance"]
Box = tuple[int, int, int, int]  # (x, y, width, height)


class Slide(Protocol):
    """An open slide. Crosses a process border as its path, so it is opened in the process that reads it."""

    path: Path
    reader: str  # registered name of the reader that opened it
    rejected_readers: tuple[str, ...]  # the readers that were tried before it, each with its reason
    vendor: str
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each level, largest first
    downsamples: tuple[float, ...]  # level-0 pixels per pixel of each level
    mpp: tuple[float, float]  # of level 0
    mpp_source: str  # where mpp was found, for people
    bounds_px0: Box  # the part that was scanned; the whole slide where the format does not say

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """Pixels (height, width, 3) of ``size`` = (width, height) at ``level``, white outside the slide.

        Raises ``RegionError`` where the file cannot be decoded; the slide stays usable. Thread-safe.
        """
        ...

    def close(self) -> None:
        """Give the file back. Reading afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class SlideRow:
    """One line of the manifest. Only ``slide_id`` and ``path`` are always there."""

    slide_id: str
    path: Path
    patient_id: str = ""  # the slide_id where the manifest does not say
    label: str | None = None
    split: str | None = None  # "train", "val" or "test"
    mpp: float | None = None
    annotation: Path | None = None
    time: float | None = None  # survival: follow-up, in any unit that all slides share
    event: bool | None = None  # survival: whether the event was seen at ``time``; False: censored
    site: str = ""  # where the patient was treated; for site-preserving folds


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue (True) on a coarse raster whose (0, 0) is the slide's (0, 0)."""

    tissue: Bool  # (h, w)
    side_px0: tuple[float, float]  # width and height of one mask pixel
    unreadable_px0: tuple[Box, ...] = ()  # regions that could not be decoded; never tissue


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of one slide, in row-major order (top to bottom, then left to right)."""

    slide_id: str
    xy_px0: Int64  # (N, 2) top-left corners
    side_px: int  # what the encoder sees: side_px x side_px pixels
    side_px0: tuple[float, float]  # the same footprint in level-0 pixels (fractional: the target mpp is exact)
    stride_px0: tuple[float, float]
    target_mpp: float
    mpp: tuple[float, float]  # of level 0
    slide_size_px0: tuple[int, int]
    bounds_px0: Box

    def __post_init__(self) -> None:
        if self.xy_px0.ndim != 2 or self.xy_px0.shape[1] != 2 or self.xy_px0.dtype != np.int64:
            raise ValueError(f"xy_px0 must be (N, 2) int64, not {self.xy_px0.shape} {self.xy_px0.dtype}")

    def __len__(self) -> int:
        return len(self.xy_px0)

    @property
    def xy_stride(self) -> Float32:
        """(N, 2) positions in units of the stride: neighbours are 1 apart. What every MIL model is given."""
        xy: Float32 = (self.xy_px0 / np.asarray(self.stride_px0)).astype(np.float32)
        return xy

    @property
    def centre_px0(self) -> Float64:
        """(N, 2) centres of the patches."""
        return self.xy_px0 + np.asarray(self.side_px0) / 2.0


@dataclass(frozen=True, eq=False)
class FeatureBag:
    """Row i of ``features`` belongs to ``grid.xy_px0[i]``. Patches that could not be read are not in it."""

    grid: PatchGrid
    features: NDArray[np.floating]  # (N, D)
    encoder: str
    weights_digest: str
    unreadable_px0: Int64 = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # (M, 2) corners left out

    def __post_init__(self) -> None:
        if len(self.features) != len(self.grid):
            raise ValueError(f"{len(self.features)} features for {len(self.grid)} patches")


@dataclass(frozen=True, eq=False)
class Explanation:
    """One score per patch: why the model says what it says about ``target``."""

    grid: PatchGrid
    scores: Float32  # (N,)
    method: str
    model: str
    target: str  # class name
    unit: Unit
    signed: bool
    residual: Mapping[str, float] = field(default_factory=dict)  # what falls on no patch: where -> how much
    aupc: float | None = None  # of the method on validation slides, area under patch flipping; lower: more faithful
    selected: bool = False  # whether its aupc is the lowest of the model's candidates

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.grid),):
            raise ValueError(f"scores {self.scores.shape} for {len(self.grid)} patches")

    @property
    def label(self) -> str:
        """What people see: channel of the pyramid, measurement in QuPath."""
        return f"{self.model} {self.method}: {self.target}"
