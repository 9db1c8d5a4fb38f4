"""The tables of a run folder as pandas DataFrames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import read_key
from ..csvtable import read_csv
from ..errors import ArtifactError

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns that stay text, whatever they hold: a slide may be called 001, and a class 1 or NA.
_TEXT = {"slide_id", "patient_id", "split", "label", "model", "task", "weights", "predicted", "set", "metric"}
_TEXT |= {"method", "target", "unit", "stage", "error", "message"}
_TEXT |= {"measure", "values", "lesion_probabilities"}  # lists of numbers, of which there may be a single one
_BOOLEAN = {"held_out"}


def read_frame(path: Path, stage: str) -> DataFrame:
    """Read a CSV of the run folder; numbers are float, empty numbers NaN, ``held_out`` is bool, names stay text.

    Raises ``ArtifactError`` where the table is absent, damaged or of another schema; ``stage`` is what makes it.
    """
    import pandas as pd

    if not path.exists():
        raise ArtifactError(f"{path} does not exist; run `wsi {stage}`, or run_pipeline(…, stages=[{stage!r}])")
    read_key(path)  # refuses a table of another schema
    header, rows = read_csv(path)
    frame = pd.DataFrame(rows, columns=header, dtype=str)
    for name in frame.columns:
        if name in _BOOLEAN:
            frame[name] = frame[name].str.lower() == "true"
        elif name not in _TEXT:
            frame[name] = _numbers(frame[name].tolist())
    return frame


def _numbers(cells: list[str]) -> list[float] | list[int] | list[str]:
    """Integers where all cells are, else floats; text where one is not a number."""
    if cells and all(cell.isdecimal() for cell in cells):
        return [int(cell) for cell in cells]
    try:
        return [float(cell) if cell else float("nan") for cell in cells]
    except ValueError:
        return cells
