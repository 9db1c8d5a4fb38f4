"""CAMELYON16 (Ehteshami Bejnordi et al., JAMA 2017): the manifest, from the folders of the download.

The challenge's folders are ``training/normal``, ``training/tumor``, ``testing/images``, ``testing/reference.csv`` and
the unpacked ``lesion_annotations``; the copy on AWS has one folder ``images`` and one ``annotations``. In both, a
slide's name identifies it, so files are recognised by their names and not by their folders.
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
_TWO_SECTIONS = "shows a second section of the same tissue, not exhaustively annotated"
_BLURRED = "a blurred tumour region is not annotated"


class KnownIssue(NamedTuple):
    """A slide that must not be used as it was published."""

    slide: str  # canonical name
    action: Literal["leave out", "no annotation"]
    reason: str


# From the data set's own README. A slide without its annotation is used for training and prediction like any other;
# only its maps are not evaluated, because tumour without an annotation would count as false positive.
KNOWN_ISSUES = (
    KnownIssue("normal_086", "leave out", "labelled normal by mistake; published again as tumor_111"),
    KnownIssue("test_049", "leave out", "a duplicate, removed from the test set by the organisers"),
    KnownIssue("test_114", "no annotation", "not exhaustively annotated"),
    *(
        KnownIssue(f"tumor_{number:03d}", "no annotation", _BLURRED if number in (79, 92) else _TWO_SECTIONS)
        for number in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
    ),
)


def canonical(name: str) -> str | None:
    """Canonical name of a slide; None for other files of the challenge, such as masks.

    Examples
    --------
    >>> canonical("Normal_86")
    'normal_086'
    """
    found = _NAME.fullmatch(name)
    return f"{found[1].lower()}_{int(found[2]):03d}" if found else None


def camelyon16_rows(files: Iterable[Path], reference: Mapping[str, str]) -> tuple[SlideRow, ...]:
    """Build the manifest of the challenge's slides.

    Training slides get split "train", from which the validation part is taken, and test slides "test". Patients are
    unknown, so every slide is its own patient.

    Parameters
    ----------
    files : iterable of Path
        Slides (.tif) and annotations (.xml); other files are ignored.
    reference : mapping of str to str
        Canonical name -> class of each test slide, see ``reference_labels``.

    Returns
    -------
    tuple of SlideRow
        The slides, sorted by name.

    Raises
    ------
    ConfigError
        A slide appears twice, a test slide has no label or no file, or a tumour slide no annotation.
    """
    ordered = sorted(files)
    slides = _by_name(path for path in ordered if path.suffix.lower() == ".tif")
    outlines = _by_name(path for path in ordered if path.suffix.lower() == ".xml")
    issues = {entry.slide: entry.action for entry in KNOWN_ISSUES}
    absent = sorted(set(reference) - set(slides) - {name for name, action in issues.items() if action == "leave out"})
    if absent:
        raise ConfigError(f"reference.csv lists {absent[0]}, but there is no {absent[0]}.tif; complete the download")
    rows = []
    for name, path in sorted(slides.items()):
        if issues.get(name) == "leave out":
            continue
        test = name.startswith("test")
        label = _test_label(name, reference) if test else name.split("_")[0]
        annotated = label == "tumor" and name not in issues
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
    """Canonical name -> class from the lines of reference.csv: name, Normal or Tumor, and further unused columns."""
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
    """Build the manifest of all slides in ``folder`` and below, see ``camelyon16_rows``.

    ``reference``: the file with the labels of the test set; default: the reference.csv found there. Raises
    ``ConfigError`` if there is no slide or no reference.csv.
    """
    files = [path for path in folder.rglob("*") if path.suffix.lower() in (".tif", ".xml")]
    if not any(canonical(path.stem) for path in files):
        raise ConfigError(f"{folder} has no slide of CAMELYON16 (normal_001.tif, …); give the folder of the download")
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
            raise ConfigError(f"{name} appears twice: {found[name]} and {path}; keep one")
        found[name] = path
    return found


def _test_label(name: str, reference: Mapping[str, str]) -> str:
    if name not in reference:
        raise ConfigError(f"reference.csv does not list {name}; use the reference.csv of the whole test set")
    return reference[name]
