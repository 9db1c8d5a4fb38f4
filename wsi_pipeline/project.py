"""One run: its config, its slides, and the paths of its run folder."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from .artifacts import write_text
from .config import Config, dump_config
from .csvtable import csv_text
from .errors import ArtifactError, ConfigError
from .types import SlideRow

_COLUMNS = ("slide_id", "path", "patient_id", "label", "split", "mpp", "annotation", "time", "event", "site")
LABEL_SEPARATOR = ";"  # between the classes of a multilabel slide
ABSTAIN = "abstain"  # the decision where a prediction set does not hold exactly one class
AUTO = "auto"  # in explain.methods: the method that patch flipping selects for each model
_LONGEST_ID = 200  # bytes; file systems allow 255, and suffixes are added
_SPLITS = {"train", "val", "test"}


def label_classes(label: str) -> list[str]:
    """The classes of a multilabel label; ``-`` means none of them."""
    return [name for part in label.split(LABEL_SEPARATOR) if (name := part.strip()) not in ("", "-")]


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the run folder; the name of the stage is the name of the folder."""

    root: Path

    def grid(self, slide_id: str) -> Path:
        return self.root / "tile" / f"{slide_id}.h5"

    def tissue(self, slide_id: str) -> Path:
        return self.root / "tile" / "tissue" / f"{slide_id}.geojson"

    def quality(self, slide_id: str) -> Path:
        return self.root / "tile" / "quality" / f"{slide_id}.jpg"

    def bag(self, slide_id: str) -> Path:
        return self.root / "embed" / f"{slide_id}.h5"

    def fold(self, model: str, seed: int, fold: int) -> Path:
        return self.root / "train" / model / f"seed{seed}_fold{fold}"

    def explanation(self, model: str, method: str, slide_id: str) -> Path:
        return self.root / "explain" / model / method / f"{slide_id}.h5"

    def selection(self, model: str) -> Path:
        return self.root / "explain" / model / "selection.json"

    def reference(self, digest: str) -> Path:
        return self.root / "explain" / ".reference" / f"{digest}.npy"

    def heatmap(self, slide_id: str) -> Path:
        return self.root / "heatmap" / f"{slide_id}.ome.zarr"

    def tiles(self, slide_id: str) -> Path:
        return self.root / "view" / f"{slide_id}.geojson"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def predictions(self) -> Path:
        return self.root / "predict" / "predictions.csv"

    @property
    def patients(self) -> Path:
        return self.root / "predict" / "patients.csv"

    @property
    def evaluate(self) -> Path:
        return self.root / "evaluate"

    @property
    def view(self) -> Path:
        return self.root / "view"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def failures(self) -> Path:
        return self.root / "failures.csv"


@dataclass(frozen=True)
class MethodSelection:
    """The method that patch flipping on validation slides selects for one model, and the measurements."""

    method: str
    aupc: dict[str, float]  # of each candidate, mean over the slides; the lowest is selected
    random: float  # the same for random scores
    slides: int  # number of slides


@dataclass(frozen=True)
class Project:
    """The config and the slides: ``slides``, which this call works on, out of ``cohort``, the whole manifest."""

    config: Config
    slides: tuple[SlideRow, ...]
    cohort: tuple[SlideRow, ...]

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.config.out)

    def methods(self, model: str) -> tuple[str, ...]:
        """The methods that explain ``model``; ``auto`` is replaced by the selected one, once it is selected."""
        selection = read_selection(self.folder.selection(model))
        selected = (selection.method,) if selection else ()
        named = self.config.explain.methods
        return tuple(dict.fromkeys(m for name in named for m in (selected if name == AUTO else (name,))))

    def slides_of(self, patient_id: str) -> tuple[str, ...]:
        """The slide_ids of one patient in the whole manifest."""
        return self._of_patient.get(patient_id, ())

    @cached_property
    def _of_patient(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for slide in self.cohort:
            found[slide.patient_id] = (*found.get(slide.patient_id, ()), slide.slide_id)
        return found


def read_selection(path: Path) -> MethodSelection | None:
    """The selection that ``wsi explain`` wrote; None where there is none. Raises ``ArtifactError`` if damaged."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        aupc = {name: float(area) for name, area in found["aupc"].items()}
        return MethodSelection(str(found["method"]), aupc, float(found["random"]), int(found["slides"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run `wsi explain` again") from error


def open_project(config: Config, only: Sequence[str] = ()) -> Project:
    """Read the manifest and write the resolved config into the run folder. ``only``: slide ids to work on."""
    slides = read_manifest(config.slides)
    missing = sorted(set(only) - {s.slide_id for s in slides})
    if missing:
        raise ConfigError(f"--only {missing[0]}: no such slide_id in {config.slides}")
    write_text(config.out / "config.yaml", dump_config(config))
    return Project(config, tuple(s for s in slides if not only or s.slide_id in only), slides)


def read_manifest(path: str | os.PathLike[str]) -> tuple[SlideRow, ...]:
    """Read a manifest.

    Parameters
    ----------
    path : str or path-like
        CSV in UTF-8 with a header. Only the column ``path`` is required; relative paths are taken from the manifest's
        folder. Unknown columns are ignored; one whose name nearly matches a known column is refused as a probable
        typo.

    Returns
    -------
    tuple of SlideRow
        In the order of the file.

    Raises
    ------
    ConfigError
        One line with the file, its line, and what to do.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(path, header)
            rows = [_row(path, reader.line_num, line) for line in reader if any(line.values())]
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}; give a CSV in slides:") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the manifest {path} is not a CSV in UTF-8: {error}") from error
    if not rows:
        raise ConfigError(f"the manifest {path} lists no slide")
    _check_distinct(path, rows)
    return tuple(rows)


def slides_from_paths(paths: Iterable[Path]) -> list[SlideRow]:
    """A manifest for slides given by path only: the file's name without its suffix is the slide_id."""
    return [SlideRow(slide_id_of(p), p.resolve(), patient_id=slide_id_of(p)) for p in sorted(paths)]


def write_manifest(path: Path, rows: Sequence[SlideRow]) -> None:
    """Write the rows as a manifest CSV with the columns slide_id and path."""
    _check_distinct(path, rows)
    write_text(path, csv_text(("slide_id", "path"), [(row.slide_id, row.path) for row in rows]))


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise ConfigError(f"the manifest {path} has two columns {twice[0]!r}; keep one")
    if "path" not in header:
        raise ConfigError(f"the manifest {path} has no 'path' column; its header is {','.join(header) or 'empty'}")
    for name in header:
        meant = get_close_matches(name, _COLUMNS, n=1, cutoff=0.7)
        if name not in _COLUMNS and meant:
            raise ConfigError(f"the manifest {path} has a column {name!r}; did you mean {meant[0]!r}?")


def _row(manifest: Path, number: int, line: dict[str, str]) -> SlideRow:
    where = f"{manifest}, line {number}"
    if None in line:
        raise ConfigError(f"{where} has more cells than the header; put quotes around a value with a comma")
    values = {name: (line.get(name) or "").strip() for name in _COLUMNS}
    if not values["path"]:
        raise ConfigError(f"{where}: path is empty")
    path = _path(where, manifest, values["path"])
    slide_id = values["slide_id"] or slide_id_of(path)
    if not re.fullmatch(r"[^/\\\x00-\x1f]+", slide_id) or slide_id.startswith(".") or ".zarr" in slide_id:
        raise ConfigError(f"{where}: slide_id {slide_id!r} cannot be a file name; use letters, digits, '_', '-'")
    if len(slide_id.encode(errors="replace")) > _LONGEST_ID:
        raise ConfigError(f"{where}: slide_id {slide_id[:40]!r}… is too long for a file name; give a shorter slide_id")
    if values["split"] and values["split"] not in _SPLITS:
        raise ConfigError(f"{where}: split {values['split']!r} must be train, val or test, or empty")
    return SlideRow(
        slide_id=slide_id,
        path=path,
        patient_id=values["patient_id"] or slide_id,
        label=values["label"] or None,
        split=values["split"] or None,
        mpp=parse_mpp(where, values["mpp"]) if values["mpp"] else None,
        annotation=_path(where, manifest, values["annotation"]) if values["annotation"] else None,
        time=_time(where, values["time"]) if values["time"] else None,
        event=_event(where, values["event"]) if values["event"] else None,
        site=values["site"],
    )


def _time(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{where}: time {text!r} must be a non-negative number, in the same unit for all slides")
    return value


def _event(where: str, text: str) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in known:
        raise ConfigError(f"{where}: event {text!r} must be 1 (observed) or 0 (censored)")
    return known[text.lower()]


def parse_mpp(where: str, text: str) -> float:
    """A resolution that the user gives: µm per pixel of level 0. Raises ``ConfigError`` where it cannot be one."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.01 <= value <= 1000:
        raise ConfigError(f"{where}: mpp {text!r} must be a number of µm per pixel of level 0, for example 0.25")
    return value


def _path(where: str, manifest: Path, text: str) -> Path:
    try:
        return (manifest.parent / Path(text).expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"{where}: {text!r} is not a path ({error})") from error


def slide_id_of(path: Path) -> str:
    """The slide_id of a slide without a manifest: its file name without the suffix."""
    name = path.name
    for suffix in (".ome.tiff", ".ome.tif"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def _check_distinct(path: Path, rows: Sequence[SlideRow]) -> None:
    seen: dict[str, SlideRow] = {}
    for row in rows:
        other = seen.setdefault(row.slide_id, row)
        if other is not row:
            raise ConfigError(
                f"{path}: the slide_id {row.slide_id!r} appears twice ({other.path}, {row.path}); "
                f"give each slide its own"
            )
