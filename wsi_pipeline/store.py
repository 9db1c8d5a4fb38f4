"""Files of the run folder: written beside and renamed, each saying its schema, its key and what made it.

HDF5 and Zarr files carry the three as attributes; a model its ``model.json``; anything else a small JSON of the
same name in the folder ``.made`` beside it. A file is current when its key is the key that is asked for: its mere
existence says nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from . import __version__
from .errors import ArtifactError, StorageError
from .types import Box, Explanation, FeatureBag, Int64, PatchGrid, TissueMask

SCHEMA = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


# --- keys ----------------------------------------------------------------------------------------------------


def content_key(**parts: Any) -> str:
    """sha256 over the parts as canonical JSON: the same parts give the same key on every machine."""
    text = json.dumps({"schema": SCHEMA, **parts}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path, samples: int = 16, sample_bytes: int = 65_536) -> str:
    """Identity of a large file from its size and evenly spaced samples, first and last bytes included.

    Independent of its name, folder and time, so a slide that moves is not computed again. A format that keeps its
    pixels in a folder beside the file (MIRAX, VMS) adds the names and sizes found there.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for i in range(samples):
            file.seek(round((size - sample_bytes) * i / (samples - 1)) if size > sample_bytes else 0)
            digest.update(file.read(sample_bytes))
    companion = path.with_suffix("")
    if companion.is_dir():
        for part in sorted(p for p in companion.rglob("*") if p.is_file()):
            digest.update(f"{part.relative_to(companion).as_posix()}:{part.stat().st_size}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Provenance:
    """What every file says of itself. ``made_by`` holds no time and no host: same input, same bytes."""

    key: str
    made_by: Mapping[str, Any]
    schema: int = SCHEMA

    @classmethod
    def of(cls, key: str, stage: str, **facts: Any) -> Provenance:
        """For a file that ``stage`` makes; ``facts``: its config section, input fingerprints and the like."""
        return cls(key, {"program": "wsi_pipeline", "version": __version__, "stage": stage, **facts})

    def attributes(self) -> dict[str, Any]:
        """As HDF5 or Zarr attributes."""
        return {
            "schema": self.schema,
            "key": self.key,
            "made_by": json.dumps(self.made_by, sort_keys=True, default=str),
        }


def read_key(path: Path) -> str | None:
    """The key a file was made with; None where the file is absent or damaged.

    Raises ``ArtifactError`` for a file of another schema: it was made by another version of this program.
    """
    attributes = _read_attributes(path)
    if attributes is None or "key" not in attributes:
        return None
    if int(attributes.get("schema", -1)) != SCHEMA:
        raise ArtifactError(
            f"{path} was written with schema {attributes.get('schema')}, this version reads {SCHEMA}; "
            f"use the version that made it, or another out: folder"
        )
    return str(attributes["key"])


def is_current(path: Path, key: str) -> bool:
    """Whether ``path`` was made from exactly what ``key`` stands for."""
    return read_key(path) == key


def made_path(path: Path) -> Path:
    """Where the provenance of a file without room for attributes stands."""
    return path.parent / ".made" / f"{path.name}.json"


def _read_attributes(path: Path) -> Mapping[str, Any] | None:
    try:
        if path.suffix == ".zarr":
            for name in (".zattrs", "zarr.json"):
                if (path / name).exists():
                    data = json.loads((path / name).read_text(encoding="utf-8"))
                    return _mapping(data.get("attributes", data).get("wsi_pipeline"))
            return None
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                return dict(file.attrs)
        if path.name == "model.json":
            return _mapping(json.loads(path.read_text(encoding="utf-8")))
        return _mapping(json.loads(made_path(path).read_text(encoding="utf-8"))) if path.exists() else None
    except (OSError, ValueError):
        return None


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


# --- writing -------------------------------------------------------------------------------------------------


def storage_error(error: OSError, path: Path) -> StorageError | None:
    """``error`` as one line for the user where the disk, and not the slide, is at fault; else None."""
    code = error.errno
    if code is None:  # HDF5 gives the number in words only
        code = next((c for c in _FULL if f"errno = {c}," in str(error)), None)
    if code not in _FULL:
        return None
    return StorageError(
        f"cannot write {path}: {os.strerror(code)}; free some space or give another out: folder, "
        f"then start again, what is finished stays"
    )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write a file or folder at; flushed and renamed at the end, removed on error.

    The last suffix is kept, so that libraries that look at it are content. Raises ``StorageError`` on a full or
    forbidden disk.
    """
    beside = path.parent / f".writing-{uuid.uuid4().hex}" / path.name
    try:
        beside.parent.mkdir(parents=True)
        yield beside
        if beside.is_dir():
            for part in beside.rglob("*"):
                if part.is_file():
                    _fsync(part)
            if path.exists():
                path.rename(beside.parent / "replaced")
        else:
            _fsync(beside)
        beside.replace(path)
        _fsync(path.parent)
    except OSError as error:
        storage = storage_error(error, path)
        if storage is None:
            raise
        raise storage from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some shared file systems cannot sync a folder
        if not path.is_dir() or error.errno not in {errno.EINVAL, errno.EBADF, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole; a file that already says so is not touched."""
    if path.exists() and path.read_bytes() == text.encode():
        return
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def write_made(path: Path, provenance: Provenance) -> None:
    """Give a text or picture its provenance; called last, when the payload stands."""
    write_text(made_path(path), json.dumps(provenance.attributes(), indent=1) + "\n")


def discard(path: Path) -> None:
    """Remove an output that no longer belongs to the config, with its provenance."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
        made_path(path).unlink(missing_ok=True)


# --- HDF5: grids, bags, explanations -------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: Path, what: str) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise ArtifactError(f"{what} {path} is not there; run the stage that makes it") from error
    except OSError as error:
        raise ArtifactError(f"{what} {path} is damaged ({error}); delete it and run again") from error
    with file:
        yield file


def _write_grid(file: h5py.File, grid: PatchGrid) -> None:
    """``coords`` with the attributes that CLAM's and TRIDENT's readers look for, and ours."""
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


def _read_grid(file: h5py.File, path: Path) -> PatchGrid:
    try:
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
    except KeyError as error:
        raise ArtifactError(f"{path} is not one of our files: {error.args[0]}") from error


def _box(values: Sequence[int]) -> Box:
    x, y, width, height = (int(v) for v in values)
    return x, y, width, height


def write_grid(path: Path, grid: PatchGrid, mask: TissueMask, provenance: Provenance) -> None:
    """A slide's grid and the tissue it was laid on."""
    with atomic_path(path) as beside, h5py.File(beside, "w") as file:
        file.attrs.update(provenance.attributes())
        _write_grid(file, grid)
        tissue = file.create_dataset("tissue", data=mask.tissue, compression="gzip", compression_opts=4)
        tissue.attrs["side_px0"] = mask.side_px0
        file["unreadable_px0"] = np.asarray(mask.unreadable_px0, np.int64).reshape(-1, 4)


def read_grid(path: Path) -> tuple[PatchGrid, TissueMask]:
    """A slide's grid and tissue mask."""
    with _open(path, "the patch grid") as file:
        grid = _read_grid(file, path)
        side = file["tissue"].attrs["side_px0"]
        unreadable = tuple(_box(row) for row in file["unreadable_px0"][:])
        return grid, TissueMask(file["tissue"][:].astype(bool), (float(side[0]), float(side[1])), unreadable)


class BagWriter:
    """Appends features batch by batch, in the grid's order; the bag appears whole, or not at all.

    ``finish`` is given the rows of the grid that were appended; the others are listed as unreadable.
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
        """(n, dim) more rows."""
        start = self._features.shape[0]
        self._features.resize(start + len(features), axis=0)
        self._features[start:] = features

    def finish(self, readable: np.ndarray, encoder: str, weights_digest: str, provenance: Provenance) -> None:
        """``readable``: (N,) bool over the grid; as many True as rows were appended."""
        if int(readable.sum()) != self._features.shape[0]:
            raise ValueError(f"{self._features.shape[0]} rows for {int(readable.sum())} readable patches")
        _write_grid(self._file, select(self._grid, readable))
        self._file["unreadable_px0"] = self._grid.xy_px0[~readable]
        self._features.attrs.update({"encoder": encoder, "weights_digest": weights_digest})
        self._file.attrs.update(provenance.attributes())


def select(grid: PatchGrid, rows: np.ndarray) -> PatchGrid:
    """The grid with only these rows ((N,) bool or indices)."""
    return PatchGrid(**{**vars(grid), "xy_px0": grid.xy_px0[rows]})


def read_bag(path: Path) -> FeatureBag:
    """A whole bag; features as stored (float16 or float32)."""
    with _open(path, "the bag") as file:
        grid = _read_grid(file, path)
        features = file["features"]
        unreadable: Int64 = file["unreadable_px0"][:].astype(np.int64)
        return FeatureBag(
            grid, features[:], str(features.attrs["encoder"]), str(features.attrs["weights_digest"]), unreadable
        )


def write_explanations(path: Path, explanations: Sequence[Explanation], provenance: Provenance) -> None:
    """One method's scores for one or more target classes of one slide: ``scores`` (K, N)."""
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
            }
        )


def read_explanations(path: Path) -> list[Explanation]:
    """The scores of one method, one entry a target class."""
    with _open(path, "the explanation") as file:
        grid = _read_grid(file, path)
        scores, a = file["scores"][:], file["scores"].attrs
        return [
            Explanation(grid, row, str(a["method"]), str(a["model"]), str(target), a["unit"], bool(a["signed"]))
            for row, target in zip(scores, a["targets"], strict=True)
        ]
