"""Tables as text: one spelling of CSV and of numbers, so that equal results are equal bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import ArtifactError


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV; commas and quotes in class names and slide ids are quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV that ``csv_text`` made."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.__class__.__name__}); delete it and run the stage that makes it"
        ) from error
    return header, rows


def format_number(value: float | None) -> str:
    """Six decimals; empty where there is no number (None, NaN)."""
    return "" if value is None or value != value else f"{value:.6f}"
