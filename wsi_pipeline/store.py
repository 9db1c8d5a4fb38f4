"""Read and write grids, bags and explanations as HDF5, with the attributes that CLAM's and TRIDENT's readers expect.

Every file carries the attributes ``schema``, ``key`` and ``made_by`` (see ``artifacts``) and the dataset ``coords``
(N, 2) int64: top-left corners in level-0 pixels, row-major, with the grid's geometry as attributes. Besides:

- grid: ``tissue`` (h, w) bool with attribute ``side_px0``, and ``unreadable_px0`` (M, 4) int64, boxes (x, y, w, h);
- bag: ``features`` (N, D) float16 or float32 with attributes ``encoder`` and ``weights_digest``, and
  ``unreadable_px0`` (M, 2) int64, the corners of the patches that could not be read;
- explanation: ``scores`` (K, N) float32, one row per target class, with attributes ``method``, ``model``, ``targets``
  (K,), ``unit``, ``signed``, ``residual`` (JSON, a list of K mappings), ``selected`` and, where measured, ``aupc``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from .artifacts import Provenance, atomic_path, require_schema
from .errors import ArtifactError
from .types import Box, Explanation, FeatureBag, Int64, PatchGrid, TissueMask


@contextlib.contextmanager
def _open(path: str | os.PathLike[str], what: str) -> Iterator[h5py.File]:
    """Open a file to read; what is not in it is an ``ArtifactError``, too."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise ArtifactError(f"{what} {path} does not exist; run the stage that makes it") from error
    except OSError as error:
        if Path(path).is_dir():
            raise ArtifactError(f"{what} {path} is a folder; give the .h5 file of one slide") from error
        raise ArtifactError(f"{what} {path} is damaged ({error}); delete it and run again") from error
    with file:
        if "schema" not in file.attrs:
            raise ArtifactError(
                f"{path} was not written by wsi_pipeline; `wsi import-features` takes over features of other programs"
            )
        require_schema(path, file.attrs["schema"])
        try:
            yield file
        except KeyError as error:
            raise ArtifactError(f"{what} cannot be read from {path}: {error.args[0]}") from error


def _write_grid(file: h5py.File, grid: PatchGrid) -> None:
    """``coords`` with the attributes that CLAM's and TRIDENT's readers expect, and our own."""
    coords = file.create_dataset("coords", data=grid.xy_px0)
    coords.attrs.update(
        {
            "name": grid.slide_id,
            "patch_size": grid.side_px,
            "patch_size_level0": round(float(np.mean(grid.side_px0))),
            "overlap": round(grid.side_px * (1 - grid.stride_px0[0] / grid.side_px0[0])),
            "level0_width": grid.slide_size_px0[0],
            "level0_height": grid.slide_size_px0[1],
            "level0_magnification": round(10 / grid.mpp[0]),
            "target_magnification": round(10 / grid.target_mpp, 2),
            "target_mpp": grid.target_mpp,
            "mpp": grid.mpp,
            "side_px0": grid.side_px0,
            "stride_px0": grid.stride_px0,
            "bounds_px0": grid.bounds_px0,
        }
    )


def _read_grid(file: h5py.File) -> PatchGrid:
    coords = file["coords"]
    a = coords.attrs
    return PatchGrid(
        slide_id=str(a["name"]),
        xy_px0=coords[:].astype(np.int64),
        side_px=int(a["patch_size"]),
        side_px0=(float(a["side_px0"][0]), float(a["side_px0"][1])),
        stride_px0=(float(a["stride_px0"][0]), float(a["stride_px0"][1])),
        target_mpp=float(a["target_mpp"]),
        mpp=(float(a["mpp"][0]), float(a["mpp"][1])),
        slide_size_px0=(int(a["level0_width"]), int(a["level0_height"])),
        bounds_px0=_box(a["bounds_px0"]),
    )


def _box(values: Sequence[int]) -> Box:
    x, y, width, height = (int(v) for v in values)
    return x, y, width, height


def write_grid(path: Path, grid: PatchGrid, mask: TissueMask, provenance: Provenance) -> None:
    """Write a slide's grid and the tissue mask it was laid on; the file appears complete or not at all."""
    with atomic_path(path) as beside, h5py.File(beside, "w") as file:
        file.attrs.update(provenance.attributes())
        _write_grid(file, grid)
        tissue = file.create_dataset("tissue", data=mask.tissue, compression="gzip", compression_opts=4)
        tissue.attrs["side_px0"] = mask.side_px0
        file["unreadable_px0"] = np.asarray(mask.unreadable_px0, np.int64).reshape(-1, 4)


def read_grid(path: str | os.PathLike[str]) -> tuple[PatchGrid, TissueMask]:
    """Read a slide's grid and tissue mask.

    Parameters
    ----------
    path : str or os.PathLike
        File written by ``write_grid``.

    Returns
    -------
    PatchGrid, TissueMask
        The patches, and the tissue.

    Raises
    ------
    ArtifactError
        The file does not exist, is damaged, has another schema, or was not written by this package.
    """
    with _open(path, "the patch grid") as file:
        grid = _read_grid(file)
        side = file["tissue"].attrs["side_px0"]
        unreadable = tuple(_box(row) for row in file["unreadable_px0"][:])
        return grid, TissueMask(file["tissue"][:].astype(bool), (float(side[0]), float(side[1])), unreadable)


class BagWriter:
    """Write a bag batch by batch, in the grid's order; the file appears complete or not at all.

    A context manager: call ``append`` for each batch, then ``finish``. Memory does not grow with the bag.

    Parameters
    ----------
    path : Path
        HDF5 file to write.
    grid : PatchGrid
        All patches of the slide, N of them.
    dim : int
        Number of features per patch.
    dtype : {"float16", "float32"}
        Stored type.
    """

    def __init__(self, path: Path, grid: PatchGrid, dim: int, dtype: str) -> None:
        self._path, self._grid, self._dim, self._dtype = path, grid, dim, dtype
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.__enter__()
        beside = self._stack.enter_context(atomic_path(self._path))
        self._file = self._stack.enter_context(h5py.File(beside, "w"))
        self._features = self._file.create_dataset(
            "features",
            shape=(0, self._dim),
            maxshape=(len(self._grid), self._dim),
            dtype=self._dtype,
            chunks=(min(256, max(1, len(self._grid))), self._dim),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, features: np.ndarray) -> None:
        """Append the features (n, dim) of the next n readable patches."""
        start = self._features.shape[0]
        self._features.resize(start + len(features), axis=0)
        self._features[start:] = features

    def finish(self, readable: np.ndarray, encoder: str, weights_digest: str, provenance: Provenance) -> None:
        """Complete the bag with its grid, encoder and provenance.

        Parameters
        ----------
        readable : ndarray of bool, (N,)
            Which patches of the grid were appended; the others are listed as unreadable.
        encoder, weights_digest : str
            Name of the encoder and sha256 of its weights.
        provenance : Provenance
            Key and origin of the file.

        Raises
        ------
        ValueError
            The number of appended rows is not the number of readable patches.
        """
        if int(readable.sum()) != self._features.shape[0]:
            raise ValueError(f"{self._features.shape[0]} rows for {int(readable.sum())} readable patches")
        _write_grid(self._file, select(self._grid, readable))
        self._file["unreadable_px0"] = self._grid.xy_px0[~readable]
        self._features.attrs.update({"encoder": encoder, "weights_digest": weights_digest})
        self._file.attrs.update(provenance.attributes())


def select(grid: PatchGrid, rows: np.ndarray) -> PatchGrid:
    """The grid with only some patches; ``rows``: (N,) bool, or indices."""
    return PatchGrid(**{**vars(grid), "xy_px0": grid.xy_px0[rows]})


def read_features(path: Path, pick: Callable[[int], Int64]) -> NDArray[np.floating]:
    """Read some rows of a bag's features.

    Parameters
    ----------
    path : Path
        File written by ``BagWriter``.
    pick : callable
        Called with N; returns the indices of the rows to read, ascending.

    Returns
    -------
    ndarray of float16 or float32, (n, D)
        The features as stored.
    """
    with _open(path, "the bag") as file:
        features = file["features"]
        rows: NDArray[np.floating] = features[pick(len(features))]
        return rows


def read_bag(path: str | os.PathLike[str]) -> FeatureBag:
    """Read a whole bag, features as stored (float16 or float32).

    Parameters
    ----------
    path : str or os.PathLike
        File written by ``BagWriter``.

    Returns
    -------
    FeatureBag
        Grid, features and encoder.

    Raises
    ------
    ArtifactError
        The file does not exist, is damaged, has another schema, or was not written by this package.
    """
    with _open(path, "the bag") as file:
        grid = _read_grid(file)
        features = file["features"]
        unreadable: Int64 = file["unreadable_px0"][:].astype(np.int64)
        return FeatureBag(
            grid, features[:], str(features.attrs["encoder"]), str(features.attrs["weights_digest"]), unreadable
        )


def write_explanations(path: Path, explanations: Sequence[Explanation], provenance: Provenance) -> None:
    """Write one method's scores on one slide; the file appears complete or not at all.

    ``explanations``: one per target class, all of one grid, method and model.
    """
    first = explanations[0]
    with atomic_path(path) as beside, h5py.File(beside, "w") as file:
        file.attrs.update(provenance.attributes())
        _write_grid(file, first.grid)
        scores = file.create_dataset("scores", data=np.stack([e.scores for e in explanations]))
        scores.attrs.update(
            {
                "method": first.method,
                "model": first.model,
                "targets": [e.target for e in explanations],
                "unit": first.unit,
                "signed": first.signed,
                "residual": json.dumps([dict(e.residual) for e in explanations]),
                "selected": first.selected,
                **({} if first.aupc is None else {"aupc": first.aupc}),
            }
        )


def read_explanations(path: str | os.PathLike[str]) -> list[Explanation]:
    """Read the scores of one method on one slide.

    Parameters
    ----------
    path : str or os.PathLike
        File written by ``write_explanations``.

    Returns
    -------
    list of Explanation
        One per target class.

    Raises
    ------
    ArtifactError
        The file does not exist, is damaged, has another schema, or was not written by this package.
    """
    with _open(path, "the explanation") as file:
        grid = _read_grid(file)
        scores, a = file["scores"][:], file["scores"].attrs
        residuals = json.loads(a["residual"]) if "residual" in a else [{}] * len(scores)
        aupc, selected = float(a["aupc"]) if "aupc" in a else None, bool(a.get("selected", False))
        names = str(a["method"]), str(a["model"])
        return [
            Explanation(grid, row, *names, str(target), a["unit"], bool(a["signed"]), residual, aupc, selected)
            for row, target, residual in zip(scores, a["targets"], residuals, strict=True)
        ]
