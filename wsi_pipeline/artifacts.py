"""Files of the run folder: written beside and renamed, each with its schema, its key and what made it.

HDF5 and Zarr files carry the three as attributes; a model in its ``model.json``; any other file in a small JSON of
the same name in the folder ``.made`` beside it. A file is current when its key equals the expected key; its mere
existence means nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil

from . import __version__
from .errors import ArtifactError, StorageError

SCHEMA = 2
_ROOT_PIDS = 0xEFFFFFFC  # inode of the id space that Linux starts with
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


def digest_or_none(path: Path | None) -> str | None:
    """``file_digest`` of a file that may be missing, or that is not given at all."""
    return file_digest(path) if path is not None and path.is_file() else None


def fingerprint(path: Path, samples: int = 16, sample_bytes: int = 65_536) -> str:
    """Identity of a large file from its size and evenly spaced samples, first and last bytes included.

    Independent of its name, folder and time, so a slide that moves is not processed again. MIRAX keeps its pixels in
    a folder beside the file: the names and sizes of the files there count too.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for i in range(samples):
            file.seek(round((size - sample_bytes) * i / (samples - 1)) if size > sample_bytes else 0)
            digest.update(file.read(sample_bytes))
    companion = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and companion.is_dir():
        for part in sorted(p for p in companion.rglob("*") if p.is_file()):
            digest.update(f"{part.relative_to(companion).as_posix()}:{part.stat().st_size}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Provenance:
    """What is stored with every file: its schema, its key, and what made it.

    ``made_by`` holds neither time nor host, so the same input gives the same bytes.
    """

    key: str
    made_by: Mapping[str, Any]
    schema: int = SCHEMA

    @classmethod
    def of(cls, key: str, stage: str, **facts: Any) -> Provenance:
        """Of a file that ``stage`` makes; ``facts``: its config section, input fingerprints and the like."""
        return cls(key, {"program": "wsi_pipeline", "version": __version__, "stage": stage, **facts})

    def with_facts(self, **facts: Any) -> Provenance:
        """The same with more in ``made_by``: what is only known when the file is written."""
        return replace(self, made_by={**self.made_by, **facts})

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
    require_schema(path, attributes.get("schema"))
    return str(attributes["key"])


def require_schema(path: str | os.PathLike[str], schema: object) -> None:
    """Raise ``ArtifactError`` for a file of another schema: its numbers may mean something else."""
    if not (isinstance(schema, int | np.integer) and schema == SCHEMA):
        raise ArtifactError(
            f"{os.fspath(path)} was written with schema {schema}, this version reads {SCHEMA}; "
            f"use the version that made it, or another out: folder"
        )


def is_current(path: Path, key: str) -> bool:
    """Whether ``path`` was made from exactly the inputs that ``key`` identifies."""
    return read_key(path) == key


def read_made_by(path: Path) -> Mapping[str, Any]:
    """How a file was made, as stored with it; empty where nothing is stored."""
    try:
        return _mapping(json.loads((_read_attributes(path) or {}).get("made_by", "{}"))) or {}
    except (ValueError, TypeError):
        return {}


def provenance_path(path: Path) -> Path:
    """The path of the provenance of a file that cannot have attributes."""
    return path.parent / ".made" / f"{path.name}.json"


def _read_attributes(path: Path) -> Mapping[str, Any] | None:
    try:
        if path.suffix == ".zarr":
            for name in (".zattrs", "zarr.json"):
                if (path / name).exists():
                    data = json.loads((path / name).read_text(encoding="utf-8"))
                    attributes = data.get("attributes", data)
                    scales = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
                    whole = all((path / scale["path"]).is_dir() for scale in scales)
                    return _mapping(attributes.get("wsi_pipeline")) if whole else None
            return None
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                return dict(file.attrs)
        if path.name == "model.json":
            return _mapping(json.loads(path.read_text(encoding="utf-8")))
        return _mapping(json.loads(provenance_path(path).read_text(encoding="utf-8"))) if path.exists() else None
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


# --- writing -------------------------------------------------------------------------------------------------


def storage_error(error: OSError, path: Path) -> StorageError | None:
    """``error`` as one line for the user where the disk, and not the slide, is at fault; else None."""
    code = error.errno
    if code is None:  # HDF5 has the number in its message only
        code = next((c for c in _FULL if f"errno = {c}," in str(error)), None)
    if code not in _FULL:
        return None
    return StorageError(
        f"cannot write {path}: {os.strerror(code)}; free some space or give another out: folder, "
        f"then start again: finished work is kept"
    )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write a file or folder at; flushed and renamed at the end, removed on error.

    The last suffix is kept, for libraries that look at it. Raises ``StorageError`` where the disk is full or not
    writable.
    """
    beside = _beside(path)
    try:
        beside.parent.mkdir(parents=True)
    except OSError as error:
        full = storage_error(error, path)
        why = f"cannot create the folder {path.parent}: {error.strerror}; give another out: folder"
        raise full or StorageError(why) from error
    try:
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


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in ``folder``."""
    for left in folder.glob(".writing-*"):
        _, _, owner = left.name.removeprefix(".writing-").partition("-")
        pid, _, host = owner.partition("-")
        if host == machine() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def remove_partial(path: Path) -> None:
    """Remove what any process of any machine left half-written of ``path``. The caller must hold the claim."""
    for left in path.parent.glob(".writing-*"):
        if (left / path.name).exists():
            shutil.rmtree(left, ignore_errors=True)


@functools.cache
def machine() -> str:
    """The scope of a process id: the host's name, and in a container its own id namespace."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return platform.node()
    return platform.node() if space == _ROOT_PIDS else f"{platform.node()}@{space}"


def _beside(path: Path) -> Path:
    """A unique path beside ``path``, with the writing process in its name."""
    return path.parent / f".writing-{uuid.uuid4().hex}-{os.getpid()}-{machine()}" / path.name


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some shared file systems cannot sync a folder
        if not path.is_dir() or error.errno not in {errno.EINVAL, errno.EBADF, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically; a file that already has this content is not touched."""
    if path.exists() and path.read_bytes() == data:
        return
    with atomic_path(path) as beside:
        beside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` in UTF-8."""
    write_bytes(path, text.encode())


def write_provenance(path: Path, provenance: Provenance) -> None:
    """Give a text or picture its provenance; called last, when the file itself is written."""
    write_text(provenance_path(path), json.dumps(provenance.attributes(), indent=1) + "\n")


def write_text_with_provenance(path: Path, text: str, provenance: Provenance) -> None:
    """Write a text with its provenance. The old provenance goes first: killed in between, the file is not current."""
    if read_key(path) != provenance.key:
        provenance_path(path).unlink(missing_ok=True)
    write_text(path, text)
    write_provenance(path, provenance)


def discard(path: Path) -> None:
    """Remove an output that no longer fits the config, with its provenance; a folder all at once or not at all."""
    if path.is_dir():
        beside = _beside(path)
        beside.parent.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.rename(beside)
        shutil.rmtree(beside.parent, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
        provenance_path(path).unlink(missing_ok=True)
