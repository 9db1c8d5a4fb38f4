"""TCGA: the manifest of diagnostic slides, from the sheets that the GDC portal provides with a download.

A barcode TCGA-05-4244-01Z-00-DX1 contains the tissue-source site (05), the patient (its first 12 characters) and the
slide: DX is a diagnostic slide (paraffin); TS, MS and BS are frozen sections, which are left out.
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
_MISSING = {"", "'--", "--", "not reported", "unknown"}

Line = Mapping[str, str]


def tcga_rows(
    sheet: Iterable[Line],
    files: Mapping[str, Path],
    projects: Sequence[str] = (),
    clinical: Mapping[str, tuple[float, bool]] | None = None,
) -> tuple[SlideRow, ...]:
    """Build the manifest of the diagnostic slides of a GDC sample sheet.

    Parameters
    ----------
    sheet : iterable of mapping
        Lines of the sample sheet.
    files : mapping of str to Path
        File name -> path of each downloaded slide.
    projects : sequence of str
        Projects to include; default: all. The label is the project without "TCGA-".
    clinical : mapping of str to (float, bool), optional
        Patient -> (days, death observed), see ``outcomes``.

    Returns
    -------
    tuple of SlideRow
        The slides, sorted by file name.

    Raises
    ------
    ConfigError
        A file is missing, a patient is in two projects, or no slide is left.
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
            raise ConfigError(f"patient {patient} is in {label} and in {project}; remove one from the sample sheet")
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
    """Read survival outcomes from a GDC clinical table, with its older or its newer column names.

    A case has a line per diagnosis or treatment; the latest follow-up is used. Patients without a number of days, or
    with a negative one, are left out.

    Parameters
    ----------
    clinical : iterable of mapping
        Lines of the table.

    Returns
    -------
    dict of str to (float, bool)
        Patient -> (days of follow-up, death observed).
    """
    deaths: dict[str, float] = {}
    followed: dict[str, float] = {}
    dead: set[str] = set()
    for line in clinical:
        stated = {key.rsplit(".", 1)[-1]: text for key, text in line.items() if text.strip().lower() not in _MISSING}
        patient = (line.get("cases.submitter_id") or line.get("case_submitter_id") or "").strip().upper()
        if stated.get("vital_status", "").lower() == "dead":
            dead.add(patient)
        for column, found in (("days_to_death", deaths), ("days_to_last_follow_up", followed)):
            days = _days(stated.get(column, ""))
            if patient and days is not None:
                found[patient] = max(days, found.get(patient, 0.0))
    known = {patient: (days, False) for patient, days in followed.items() if patient not in dead}
    return known | {patient: (days, True) for patient, days in deaths.items() if patient in dead}


def read_tcga(
    folder: Path, sheet: Path, projects: Sequence[str] = (), clinical: Path | None = None
) -> tuple[SlideRow, ...]:
    """Build the manifest of the .svs files in ``folder`` and below, see ``tcga_rows``.

    ``sheet`` and ``clinical``: the GDC sample sheet and clinical table (TSV). Raises ``ConfigError``.
    """
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
