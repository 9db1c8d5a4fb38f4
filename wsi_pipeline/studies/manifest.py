"""A study's manifest as text, and the checks before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..artifacts import write_text
from ..csvtable import csv_text
from ..errors import ConfigError
from ..types import SlideRow

COLUMNS = ("slide_id", "path", "patient_id", "label", "split", "annotation", "site", "time", "event")


def manifest_text(rows: Sequence[SlideRow]) -> str:
    """Format rows as CSV, in the given order; empty columns are left out."""
    cells = [[_cell(row, name) for name in COLUMNS] for row in rows]
    used = [i for i, name in enumerate(COLUMNS) if name in COLUMNS[:2] or any(line[i] for line in cells)]
    return csv_text([COLUMNS[i] for i in used], [[line[i] for i in used] for line in cells])


def select_slides(
    rows: Sequence[SlideRow], leave_out: Sequence[str] = (), count: int | None = None
) -> tuple[SlideRow, ...]:
    """Leave slides out, and check the number of the others.

    Parameters
    ----------
    rows : sequence of SlideRow
        All slides.
    leave_out : sequence of str
        slide_ids to leave out.
    count : int, optional
        How many slides must remain.

    Returns
    -------
    tuple of SlideRow
        The remaining slides.

    Raises
    ------
    ConfigError
        A slide_id is unknown, or the number differs, as for an incomplete download.
    """
    unknown = sorted(set(leave_out) - {row.slide_id for row in rows})
    if unknown:
        raise ConfigError(f"--leave-out {unknown[0]}: no such slide in this cohort; give a slide_id of it")
    kept = tuple(row for row in rows if row.slide_id not in leave_out)
    if count is not None and len(kept) != count:
        raise ConfigError(
            f"{len(kept)} slides were found, but the study expects {count}; complete the download, or change the count"
        )
    return kept


def write_study_manifest(path: Path, rows: Sequence[SlideRow]) -> None:
    """Write ``manifest_text`` with absolute paths, so that the manifest can be in any folder."""
    absolute = [
        replace(row, path=row.path.resolve(), annotation=row.annotation and row.annotation.resolve()) for row in rows
    ]
    write_text(path, manifest_text(absolute))


def _cell(row: SlideRow, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return str(int(value)) if isinstance(value, bool) else str(value)
