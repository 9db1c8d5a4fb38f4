"""CSV tables: one format for rows and numbers, so that equal results are equal bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import ArtifactError


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Format a table as CSV, with commas and quotes in cells quoted.

    Parameters
    ----------
    header : sequence of str
        Column names.
    rows : iterable of sequences
        Cells of each row.

    Returns
    -------
    str
        The text, lines ending in a line feed.

    Examples
    --------
    >>> csv_text(("slide_id", "label"), [("slide_1", "a, b")])
    'slide_id,label\nslide_1,"a, b"\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Read a CSV that ``csv_text`` made.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    header : list of str
        Column names.
    rows : list of list of str
        Cells of each row.

    Raises
    ------
    ArtifactError
        The file does not exist or is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.__class__.__name__}); delete it and run the stage that makes it"
        ) from error
    return header, rows


def format_number(value: float | None) -> str:
    """Format a number with six decimals; empty for None and NaN.

    Examples
    --------
    >>> format_number(0.5), format_number(None)
    ('0.500000', '')
    """
    return "" if value is None or value != value else f"{value:.6f}"
