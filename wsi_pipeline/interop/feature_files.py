"""Feature files of CLAM, TRIDENT, STAMP and AtlasPatch: found in a folder and read as stored.

The numbers are interpreted in ``tile.producers``. A batch of one, (1, N, D), counts as (N, D). Attributes are returned
as plain Python values; the text ``None``, which TRIDENT writes for unknown values, counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from pydantic import Field, ValidationError

from ..artifacts import fingerprint
from ..config import Count, EmbedConfig, Positive, Section
from ..errors import ConfigError, SlideError
from ..types import Float64


class ImportOptions(Section):
    """Properties that feature files may lack; ``embed.import_options``, and options of ``wsi import-features``."""

    coords: Path | None = Field(None, description="folder of CLAM's coordinates files, if it is another one")
    patch_size_level0: Positive | None = Field(None, description="side of a patch in level-0 pixels")
    patch_size: Count | None = Field(None, description="side of the encoder's input patches in pixels")
    encoder: str | None = Field(None, description="name of the encoder; if there are several, the one to import")
    slide_size: tuple[Count, Count] | Literal["patches"] | None = Field(
        None, description="width and height of level 0; patches: as far as the patches reach"
    )
    target_mpp: Positive | None = Field(
        None,
        description="nominal µm per pixel of the patches, if slides of slightly different mpp are to count as one",
    )


@dataclass(frozen=True)
class FeatureFile:
    """Contents of one HDF5 file. Shapes are as stored, without a leading batch of one.

    Attributes
    ----------
    path : Path
        The file.
    features : mapping of str to tuple of int
        Shape of each dataset of patch features.
    coords : tuple of int, optional
        Shape of ``coords``.
    attributes, coords_attributes, features_attributes : mapping
        Attributes of the file, of ``coords``, and of the first dataset of features.
    others : frozenset of str
        Further datasets.
    """

    path: Path
    features: Mapping[str, tuple[int, ...]]
    coords: tuple[int, ...] | None
    attributes: Mapping[str, Any]
    coords_attributes: Mapping[str, Any]
    features_attributes: Mapping[str, Any]
    others: frozenset[str]

    @property
    def facts(self) -> dict[str, Any]:
        """Attributes of the file and of ``coords``; those of ``coords`` take precedence."""
        return {**self.attributes, **self.coords_attributes}

    @property
    def encoders(self) -> tuple[str, ...]:
        """Encoders of the features: from the dataset names, an attribute, or TRIDENT's folder name."""
        grouped = [name.removeprefix("features/") for name in self.features if "/" in name]
        stated = self.features_attributes.get("encoder") or self.attributes.get("extractor")
        folder = self.path.parent.name
        if grouped:
            return tuple(grouped)
        if stated:
            return (str(stated),)
        return (folder.removeprefix("features_"),) if folder.startswith("features_") else ()


@dataclass(frozen=True)
class SlideFiles:
    """The feature files of one slide; ``problem``: why there is no file of features."""

    features: Path | None = None
    coordinates: Path | None = None
    problem: str = ""

    def digests(self) -> dict[str, str]:
        """Fingerprints of the files, independent of their location; results depend on these."""
        files = {"features": self.features, "coordinates": self.coordinates}
        return {name: fingerprint(path) if path else "missing" for name, path in files.items()}


def import_options(embed: EmbedConfig) -> ImportOptions:
    """The options of the section, with ``coords`` relative to the import folder. Raises ``ConfigError``."""
    try:
        options = ImportOptions.model_validate(embed.import_options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("embed.import_options", *(str(part) for part in first["loc"][:1])))
        known = ", ".join(ImportOptions.model_fields)
        raise ConfigError(f"{where} = {first['input']!r}: {first['msg']}; the options are: {known}") from error
    if options.coords is None or embed.import_ is None:
        return options
    return options.model_copy(update={"coords": embed.import_ / options.coords.expanduser()})


def key_parts(options: ImportOptions) -> dict[str, Any]:
    """The options that results depend on: all but the location of files."""
    return options.model_dump(mode="json", exclude={"coords"})


def index(folder: Path) -> dict[str, list[Path]]:
    """Index the HDF5 files in a folder and below, without hidden folders.

    Returns
    -------
    dict of str to list of Path
        File name without ``.h5`` -> the files of that name.

    Raises
    ------
    ConfigError
        The folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(f"embed.import: {folder} is not a folder; give the one that holds the feature files")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.h5")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.setdefault(path.stem, []).append(path)
    return found


def find(
    names: Iterable[str],
    folder: Path,
    files: Mapping[str, list[Path]],
    coordinates: Mapping[str, list[Path]],
    encoder: str | None,
) -> SlideFiles:
    """Find the feature file of one slide, and CLAM's separate file of coordinates.

    Parameters
    ----------
    names : iterable of str
        Possible file names without ``.h5``; the first that exists is used.
    folder : Path
        The import folder, for the error message.
    files, coordinates : mapping of str to list of Path
        Index of ``folder``, and of the folder with CLAM's coordinates files.
    encoder : str, optional
        The encoder to choose if there are several files.

    Returns
    -------
    SlideFiles
        The files, or the reason why there are none.

    Raises
    ------
    ConfigError
        Several files match.
    """
    names = list(dict.fromkeys(names))
    candidates = next((files[name] for name in names if name in files), [])
    try:
        inspected = [inspect_file(path) for path in candidates]
        matching = [file for file in inspected if file.features]
        if len(matching) > 1 and encoder is not None:
            matching = [file for file in matching if encoder in file.encoders]
        _require_one([file.path for file in matching], f"features of {names[0]}", "--encoder NAME")
        if not matching:
            return SlideFiles(problem=_why_none(names[0], folder, inspected))
        return SlideFiles(matching[0].path, _coordinates(matching[0], names, coordinates))
    except SlideError as error:
        return SlideFiles(problem=str(error))


def slide_names(folder: Path) -> list[str]:
    """Sorted names of all files in ``folder`` and below that contain patch features, or cannot be read."""
    return sorted(name for name, paths in index(folder).items() if any(_is_candidate(path) for path in paths))


def inspect_file(path: Path) -> FeatureFile:
    """Read the structure and the attributes of a file.

    Raises ``SlideError`` if it is not an HDF5 file, or if this package wrote it.
    """
    try:
        with h5py.File(path, "r") as file:
            if "made_by" in file.attrs:
                raise SlideError(f"{path} is a bag of wsi_pipeline; use its run folder instead of importing it")
            arrays = _arrays(file)
            features = _patch_features(arrays, _plain(file.attrs))
            coords = arrays.get("coords")
            return FeatureFile(
                path=path,
                features=features,
                coords=_shape(coords) if coords is not None else None,
                attributes=_plain(file.attrs),
                coords_attributes=_plain(coords.attrs) if coords is not None else {},
                features_attributes=_plain(arrays[next(iter(features))].attrs) if features else {},
                others=frozenset(arrays) - set(features) - {"coords"},
            )
    except SlideError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise SlideError(f"{path} cannot be read as HDF5 ({error}); copy it again or leave the slide out") from error


def read_array(path: Path, name: str) -> np.ndarray:
    """Read a whole dataset, a batch of one without its first axis. Raises ``SlideError`` if it cannot be read."""
    try:
        with h5py.File(path, "r") as file:
            array: np.ndarray = file[name][:]
            return array.reshape(_shape(array))
    except (OSError, RuntimeError, KeyError) as error:
        raise SlideError(f"{path}: {name} cannot be read ({error}); copy the file again") from error


def read_xy(file: FeatureFile) -> Float64:
    """Read the first two columns of ``coords``, (N, 2), in the file's own unit and order.

    Raises ``SlideError`` if there are none, or if they cannot be read.
    """
    if file.coords is None:
        raise SlideError(f"{file.path} has no coords; patches without a position cannot be imported")
    if 0 in file.coords:
        return np.zeros((0, 2))
    if len(file.coords) != 2 or file.coords[1] < 2:
        raise SlideError(f"{file.path}: coords are {file.coords}, not (patches, 2)")
    xy: Float64 = read_array(file.path, "coords")[:, :2].astype(np.float64)
    return xy


def _is_candidate(path: Path) -> bool:
    try:
        return bool(inspect_file(path).features)
    except SlideError:
        return True  # listed, so that it fails under its name


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Name -> dataset, of the file and of its groups, in alphabetical order."""
    found: dict[str, h5py.Dataset] = {}
    for name, item in file.items():
        if isinstance(item, h5py.Dataset):
            found[name] = item
        elif isinstance(item, h5py.Group):
            inside = {f"{name}/{key}": part for key, part in item.items() if not key.startswith("__tmp_")}
            found |= {key: part for key, part in inside.items() if isinstance(part, h5py.Dataset)}
    return found


def _patch_features(arrays: Mapping[str, h5py.Dataset], attributes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The datasets with one row per patch: not those of whole slides or patients."""
    if str(attributes.get("feat_type", "tile")) != "tile" or "coords" not in arrays:
        return {}
    named = {
        name: _shape(a) for name, a in arrays.items() if name in {"features", "feats"} or name.startswith("features/")
    }
    return {name: shape for name, shape in named.items() if len(shape) == 2 or shape == (0,)}


def _shape(array: h5py.Dataset | np.ndarray) -> tuple[int, ...]:
    """The shape; of a batch of one, (1, N, D), that of its only element."""
    shape: tuple[int, ...] = array.shape
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, stored in attributes.items():
        value = stored.tolist() if isinstance(stored, np.ndarray | np.generic) else stored
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if not (value is None or value == "None" or isinstance(value, h5py.Empty)):
            found[name] = value
    return found


def _coordinates(file: FeatureFile, names: list[str], files: Mapping[str, list[Path]]) -> Path | None:
    """CLAM's coordinates file, if ``file`` itself does not state how large its patches are."""
    if "features" not in file.features or "patch_size" in file.facts:
        return None
    possible = [name + ending for name in names for ending in ("", "_patches")]
    candidates = [path for name in possible for path in files.get(name, []) if path != file.path]
    matching = [path for path in candidates if not (found := inspect_file(path)).features and found.coords is not None]
    _require_one(matching, f"coordinates of {names[0]}", "--coords DIR")
    return matching[0] if matching else None


def _require_one(paths: list[Path], what: str, option: str) -> None:
    if len(paths) > 1:
        raise ConfigError(f"{what} are in {paths[0]} and in {paths[1]}; give the folder of one, or {option}")


def _why_none(name: str, folder: Path, inspected: list[FeatureFile]) -> str:
    if any(file.attributes.get("feat_type", "tile") != "tile" for file in inspected):
        return f"{inspected[0].path} has one vector for the whole slide; import the features of its patches"
    if inspected:
        return f"{inspected[0].path} has no patch features with coords (datasets features or feats, and coords)"
    if next(folder.rglob(f"{name}.pt"), None) is not None:
        return f"{name}: {folder} has only its .pt file, which has no coordinates; import CLAM's h5_files folder"
    return f"{name} has no feature file: no {name}.h5 in {folder} or below; put it there, or leave the slide out"
