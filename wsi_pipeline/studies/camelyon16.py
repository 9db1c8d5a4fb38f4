"""CAMELYON16 (Ehteshami Bejnordi et al., JAMA 2017): the manifest, from the folders as they are given out.

The challenge's folders hold ``training/normal``, ``training/tumor``, ``testing/images``, ``testing/reference.csv`` and
the unpacked ``lesion_annotations``; the copy on AWS one folder ``images`` and one ``annotations``. A slide's name says
what it is in both, so files are known by their names and not by their folders.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import ConfigError
from ..types import SlideRow

CLASSES = ("normal", "tumor")
_NAME = re.compile(r"(normal|tumor|test)_(\d+)", re.IGNORECASE)
_TWO_SECTIONS = "holds a second section of the same tissue, not exhaustively annotated"
_BLURRED = "a blurred tumour region is not annotated"


class Known(NamedTuple):
    """A slide that must not be taken as it lies there."""

    slide: str  # as ``canonical`` writes it
    action: Literal["leave out", "no annotation"]
    reason: str


# What the data set's own README says of its slides. A slide without its annotation is trained on and predicted as any
# other; only its maps are not measured, since unmarked tumour would count as a false alarm.
KNOWN = (
    Known("normal_086", "leave out", "labelled normal by mistake; given out again as tumor_111"),
    Known("test_049", "leave out", "a duplicate, taken out of the test set by the organisers"),
    Known("test_114", "no annotation", "not exhaustively annotated"),
    *(
        Known(f"tumor_{number:03d}", "no annotation", _BLURRED if number in (79, 92) else _TWO_SECTIONS)
        for number in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
    ),
)


def canonical(name: str) -> str | None:
    """``Normal_86`` -> ``normal_086``; None for what is no slide of the challenge (a mask, say)."""
    found = _NAME.fullmatch(name)
    return f"{found[1].lower()}_{int(found[2]):03d}" if found else None


def camelyon16_rows(files: Iterable[Path], reference: Mapping[str, str]) -> tuple[SlideRow, ...]:
    """The manifest of the slides (.tif) and annotations (.xml) in ``files``, sorted by name.

    ``reference``: canonical name of a test slide -> class. Training slides get split "train", from which the
    validation part is taken; test slides "test". Nothing is known of patients, so every slide is its own.
    Raises ``ConfigError`` where a slide stands twice, a test slide has no label or no file, or a tumour slide no
    annotation.
    """
    ordered = sorted(files)
    slides = _by_name(path for path in ordered if path.suffix.lower() == ".tif")
    outlines = _by_name(path for path in ordered if path.suffix.lower() == ".xml")
    known = {entry.slide: entry.action for entry in KNOWN}
    absent = sorted(set(reference) - set(slides) - {name for name, action in known.items() if action == "leave out"})
    if absent:
        raise ConfigError(f"reference.csv lists {absent[0]}, but there is no {absent[0]}.tif; complete the download")
    rows = []
    for name, path in sorted(slides.items()):
        if known.get(name) == "leave out":
            continue
        test = name.startswith("test")
        label = _test_label(name, reference) if test else name.split("_")[0]
        annotated = label == "tumor" and name not in known
        if annotated and name not in outlines:
            raise ConfigError(
                f"{path.name} shows tumour but there is no {path.stem}.xml; unpack lesion_annotations.zip beside it"
            )
        rows.append(
            SlideRow(
                path.stem,
                path,
                patient_id=path.stem,
                label=label,
                split="test" if test else "train",
                annotation=outlines[name] if annotated else None,
            )
        )
    return tuple(rows)


def reference_labels(lines: Iterable[Sequence[str]]) -> dict[str, str]:
    """Canonical name -> class from the lines of reference.csv: name, Normal or Tumor, and more that is not used."""
    found: dict[str, str] = {}
    for line in lines:
        name = canonical(line[0].strip().removesuffix(".tif")) if len(line) > 1 else None
        label = line[1].strip().lower() if name else ""
        if name and label not in CLASSES:
            raise ConfigError(f"reference.csv gives {line[0]} the class {line[1]!r}; it must be Normal or Tumor")
        if name:
            found[name] = label
    return found


def read_camelyon16(folder: Path, reference: Path | None = None) -> tuple[SlideRow, ...]:
    """``camelyon16_rows`` of everything below ``folder``; ``reference``: default, the reference.csv found there.

    Raises ``ConfigError`` where there is no slide or no reference.csv.
    """
    files = [path for path in folder.rglob("*") if path.suffix.lower() in (".tif", ".xml")]
    if not any(canonical(path.stem) for path in files):
        raise ConfigError(f"{folder} holds no slide of CAMELYON16 (normal_001.tif, …); give the folder of the download")
    listed = reference or next(iter(sorted(folder.rglob("reference.csv"))), None)
    if listed is None:
        raise ConfigError(f"there is no reference.csv below {folder}; put it there, or give it with --reference")
    try:
        with listed.open(encoding="utf-8-sig", newline="") as file:
            labels = reference_labels(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {listed}: {error}; download it again") from error
    return camelyon16_rows(files, labels)


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        name = canonical(path.stem)
        if name is None:
            continue
        if name in found:
            raise ConfigError(f"{name} stands twice: {found[name]} and {path}; keep one")
        found[name] = path
    return found


def _test_label(name: str, reference: Mapping[str, str]) -> str:
    if name not in reference:
        raise ConfigError(f"reference.csv does not say what {name} is; use the reference.csv of the whole test set")
    return reference[name]
