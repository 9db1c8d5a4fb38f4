"""TCGA: the manifest of diagnostic slides, from the sheets that the GDC portal gives with a download.

A barcode TCGA-05-4244-01Z-00-DX1 names the tissue-source site (05), with it the patient (its first 12 characters),
and the slide: DX is a diagnostic slide (paraffin); TS, MS and BS are frozen sections, which are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError
from ..types import SlideRow

_DIAGNOSTIC = re.compile(r"(TCGA-(\w{2})-\w{4})-\w{3}-\w{2}-DX\w*\..*", re.IGNORECASE)
_NEEDED = ("File ID", "File Name", "Project ID")
_NOT_SAID = {"", "'--", "--", "not reported", "unknown"}

Line = Mapping[str, str]


def tcga_rows(
    sheet: Iterable[Line],
    files: Mapping[str, Path],
    projects: Sequence[str] = (),
    clinical: Mapping[str, tuple[float, bool]] | None = None,
) -> tuple[SlideRow, ...]:
    """The diagnostic slides of a GDC sample sheet, sorted by file name.

    ``files``: file name -> path of what was downloaded. ``projects``: those wanted, default all; the label is the
    project without "TCGA-". ``clinical``: patient -> (days, death seen), see ``outcomes``; a patient it does not know
    gets none. Raises ``ConfigError`` where a file is missing, a patient stands in two projects, or nothing is left.
    """
    rows: dict[str, SlideRow] = {}
    label_of: dict[str, str] = {}
    for line in sheet:
        name, project = line["File Name"].strip(), line["Project ID"].split(",")[0].strip()
        barcode = _DIAGNOSTIC.fullmatch(name)
        if barcode is None or (projects and project not in projects):
            continue
        if name not in files:
            raise ConfigError(
                f"the sample sheet lists {name}, which is not below the slides' folder; complete the download"
            )
        patient, site = barcode[1].upper(), barcode[2].upper()
        label = label_of.setdefault(patient, project.removeprefix("TCGA-"))
        if label != project.removeprefix("TCGA-"):
            raise ConfigError(f"patient {patient} stands in {label} and in {project}; take one out of the sample sheet")
        days, died = (clinical or {}).get(patient, (None, None))
        slide_id = Path(name).stem
        rows[slide_id] = SlideRow(
            slide_id, files[name], patient_id=patient, label=label, time=days, event=died, site=site
        )
    missing = sorted({project.removeprefix("TCGA-") for project in projects} - {str(r.label) for r in rows.values()})
    if missing or not rows:
        what = f"of TCGA-{missing[0]}" if missing else ""
        raise ConfigError(
            f"the sample sheet lists no diagnostic slide (-DX) {what}; add them to the cart of the portal"
        )
    return tuple(rows[slide_id] for slide_id in sorted(rows))


def outcomes(clinical: Iterable[Line]) -> dict[str, tuple[float, bool]]:
    """Patient -> (days followed, death seen) from a GDC clinical table, with its older or its newer column names.

    A case has a line for each diagnosis or treatment: the latest follow-up counts. Who has no number of days, or a
    negative one, is left out.
    """
    deaths: dict[str, float] = {}
    followed: dict[str, float] = {}
    dead: set[str] = set()
    for line in clinical:
        said = {key.rsplit(".", 1)[-1]: text for key, text in line.items() if text.strip().lower() not in _NOT_SAID}
        patient = (line.get("cases.submitter_id") or line.get("case_submitter_id") or "").strip().upper()
        if said.get("vital_status", "").lower() == "dead":
            dead.add(patient)
        for column, found in (("days_to_death", deaths), ("days_to_last_follow_up", followed)):
            days = _days(said.get(column, ""))
            if patient and days is not None:
                found[patient] = max(days, found.get(patient, 0.0))
    known = {patient: (days, False) for patient, days in followed.items() if patient not in dead}
    return known | {patient: (days, True) for patient, days in deaths.items() if patient in dead}


def read_tcga(
    folder: Path, sheet: Path, projects: Sequence[str] = (), clinical: Path | None = None
) -> tuple[SlideRow, ...]:
    """``tcga_rows`` of the .svs files below ``folder`` (the GDC client puts each in a folder of its own)."""
    lines = _read_tsv(sheet, _NEEDED, "the sample sheet")
    found = outcomes(_read_tsv(clinical, (), "the clinical table")) if clinical else None
    return tcga_rows(lines, {path.name: path for path in sorted(folder.rglob("*.svs"))}, projects, found)


def _read_tsv(path: Path, needed: Sequence[str], what: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            absent = [name for name in needed if name not in (reader.fieldnames or ())]
            if absent:
                raise ConfigError(f"{what} {path} has no column {absent[0]!r}; download it as TSV from the GDC portal")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {what} {path}: {error}; download it as TSV from the GDC portal") from error


def _days(text: str) -> float | None:
    if not text:
        return None
    try:
        days = float(text)
    except ValueError as error:
        raise ConfigError(f"the clinical table gives {text!r} for a number of days; download it again") from error
    return days if days >= 0 else None
