"""Data types exchanged between stages. Read this first.

Frame: a coordinate is (x, y), top-left corner, in level-0 pixels of the full slide, and its name ends in ``_px0``,
unless the name states another frame. Arrays are (rows, columns). ``mpp`` is micrometres per pixel, (x, y).
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
    """An open slide: a context manager that reads regions at any pyramid level.

    Only the path is passed between processes; each process opens the slide itself.

    Attributes
    ----------
    path : Path
        The slide file.
    reader : str
        Registered name of the reader that opened it.
    rejected_readers : tuple of str
        The readers that were tried first, each with the reason why it could not open the file.
    vendor : str
        Scanner vendor or file format.
    sizes : tuple of (int, int)
        (width, height) of each level in pixels of that level, largest first.
    downsamples : tuple of float
        Level-0 pixels per pixel of each level.
    mpp : (float, float)
        µm per level-0 pixel, (x, y).
    mpp_source : str
        Where ``mpp`` was found, for display.
    bounds_px0 : (int, int, int, int)
        The scanned part (x, y, width, height) in level-0 pixels; the whole slide where the format does not state it.
    """

    path: Path
    reader: str
    rejected_readers: tuple[str, ...]
    vendor: str
    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    mpp: tuple[float, float]
    mpp_source: str
    bounds_px0: Box

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """Read a region. Thread-safe.

        Parameters
        ----------
        xy_px0 : (int, int)
            Top-left corner in level-0 pixels; it may lie outside the slide.
        level : int
            Pyramid level, 0 is the largest.
        size : (int, int)
            (width, height) in pixels of ``level``.

        Returns
        -------
        ndarray of uint8, (height, width, 3)
            RGB, white outside the slide.

        Raises
        ------
        RegionError
            The region cannot be decoded; the slide stays usable.
        """
        ...

    def close(self) -> None:
        """Close the file. Reading afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class SlideRow:
    """One line of the manifest. Only ``slide_id`` and ``path`` are always present.

    Attributes
    ----------
    slide_id : str
        Name of the slide in every file of the run.
    path : Path
        The slide file.
    patient_id : str
        The ``slide_id`` where the manifest names no patient.
    label : str, optional
        Class, classes or value, as the task needs.
    split : {"train", "val", "test"}, optional
        Fixed part of the data set.
    mpp : float, optional
        µm per level-0 pixel; takes precedence over the file's own resolution.
    annotation : Path, optional
        GeoJSON (QuPath) or ASAP XML.
    time : float, optional
        Survival: follow-up time, in one unit for all slides.
    event : bool, optional
        Survival: whether the event was observed at ``time``; False means censored.
    site : str
        Where the patient was treated; for site-preserving folds.
    """

    slide_id: str
    path: Path
    patient_id: str = ""
    label: str | None = None
    split: str | None = None
    mpp: float | None = None
    annotation: Path | None = None
    time: float | None = None
    event: bool | None = None
    site: str = ""


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue on a coarse raster whose (0, 0) is the slide's (0, 0).

    Attributes
    ----------
    tissue : ndarray of bool, (h, w)
        True where there is tissue.
    side_px0 : (float, float)
        Width and height of one mask pixel in level-0 pixels.
    unreadable_px0 : tuple of (int, int, int, int)
        Boxes (x, y, width, height) in level-0 pixels that could not be decoded; never tissue.
    """

    tissue: Bool  # (h, w)
    side_px0: tuple[float, float]
    unreadable_px0: tuple[Box, ...] = ()

    def __repr__(self) -> str:
        rows, columns = self.tissue.shape
        covered = self.tissue.mean() if self.tissue.size else 0.0
        width, height = self.side_px0
        return f"<tissue mask: {rows} x {columns} cells of {width:g} x {height:g} px, {covered:.1%} tissue>"


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of one slide, in row-major order (top to bottom, then left to right). ``len`` gives N.

    Attributes
    ----------
    slide_id : str
        The slide.
    xy_px0 : ndarray of int64, (N, 2)
        Top-left corners in level-0 pixels.
    side_px : int
        Side of a patch in pixels at ``target_mpp``: the encoder gets (side_px, side_px, 3).
    side_px0 : (float, float)
        The same footprint in level-0 pixels, (x, y); fractional, because the target mpp is met exactly.
    stride_px0 : (float, float)
        Distance between neighbours in level-0 pixels, (x, y).
    target_mpp : float
        µm per pixel of the patches.
    mpp : (float, float)
        µm per level-0 pixel, (x, y).
    slide_size_px0 : (int, int)
        (width, height) of level 0.
    bounds_px0 : (int, int, int, int)
        The scanned part, (x, y, width, height).
    """

    slide_id: str
    xy_px0: Int64  # (N, 2)
    side_px: int
    side_px0: tuple[float, float]
    stride_px0: tuple[float, float]
    target_mpp: float
    mpp: tuple[float, float]
    slide_size_px0: tuple[int, int]
    bounds_px0: Box

    def __post_init__(self) -> None:
        if self.xy_px0.ndim != 2 or self.xy_px0.shape[1] != 2 or self.xy_px0.dtype != np.int64:
            raise ValueError(f"xy_px0 must be (N, 2) int64, not {self.xy_px0.shape} {self.xy_px0.dtype}")

    def __len__(self) -> int:
        return len(self.xy_px0)

    def __repr__(self) -> str:
        return f"<grid of {self.slide_id}: {len(self)} patches of {self.side_px} px at {self.target_mpp:g} µm/px>"

    @property
    def xy_stride(self) -> Float32:
        """(N, 2) positions in units of the stride: neighbours are 1 apart. Every MIL model gets these."""
        xy: Float32 = (self.xy_px0 / np.asarray(self.stride_px0)).astype(np.float32)
        return xy

    @property
    def centre_px0(self) -> Float64:
        """(N, 2) centres of the patches in level-0 pixels."""
        return self.xy_px0 + np.asarray(self.side_px0) / 2.0


@dataclass(frozen=True, eq=False)
class FeatureBag:
    """The patch features of one slide: row i of ``features`` belongs to ``grid.xy_px0[i]``.

    Attributes
    ----------
    grid : PatchGrid
        The patches that could be read.
    features : ndarray of float16 or float32, (N, D)
        One feature vector per patch.
    encoder : str
        Name of the patch encoder.
    weights_digest : str
        sha256 of its weights file, or ``random``.
    unreadable_px0 : ndarray of int64, (M, 2)
        Corners of the patches that could not be read and are left out, in level-0 pixels.
    """

    grid: PatchGrid
    features: NDArray[np.floating]  # (N, D)
    encoder: str
    weights_digest: str
    unreadable_px0: Int64 = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # (M, 2)

    def __post_init__(self) -> None:
        if len(self.features) != len(self.grid):
            raise ValueError(f"{len(self.features)} features for {len(self.grid)} patches")

    def __repr__(self) -> str:
        rows, dim = self.features.shape
        return (
            f"<bag of {self.grid.slide_id}: {rows} patches x {dim} features of {self.encoder}, {self.features.dtype}>"
        )


@dataclass(frozen=True, eq=False)
class Explanation:
    """One score per patch that explains a model's prediction of ``target``.

    Attributes
    ----------
    grid : PatchGrid
        The patches of the slide.
    scores : ndarray of float32, (N,)
        Score of each patch.
    method, model : str
        Explanation method, and the model that it explains.
    target : str
        Name of the explained class.
    unit : str
        attention; probability, value or risk of the patch alone; attribution, its contribution to the explained output;
        fraction, from 0 to 1; distance.
    signed : bool
        Whether negative scores are evidence against the target.
    residual : mapping of str to float
        The part of the explained output that the method assigns to inputs other than patches (class token, padding,
        bias), by name.
    aupc : float, optional
        Area under the patch-flipping curve of the method on validation slides; lower is more faithful.
    selected : bool
        Whether its ``aupc`` is the lowest among the candidates of the model.
    """

    grid: PatchGrid
    scores: Float32  # (N,)
    method: str
    model: str
    target: str
    unit: Unit
    signed: bool
    residual: Mapping[str, float] = field(default_factory=dict)
    aupc: float | None = None
    selected: bool = False

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.grid),):
            raise ValueError(f"scores {self.scores.shape} for {len(self.grid)} patches")

    @property
    def label(self) -> str:
        """Name shown to the user: channel of the pyramid, measurement in QuPath."""
        return f"{self.model} {self.method}: {self.target}"
