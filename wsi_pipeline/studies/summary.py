"""Runs of one design with several seeds in one table: mean ± sd of every measure."""

from __future__ import annotations

import csv
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import ArtifactError
from ..files import write_text
from ..project import RunFolder
from ..train.table import number, table

COLUMNS = ("design", "encoder", "model", "measure", "mean", "sd", "runs")
_MAP = "map_auprc:"  # + method: mean over the held-out slides with an annotation

Line = Mapping[str, str]


@dataclass(frozen=True)
class Design:
    """What runs share that differ in their seed only: they lie in one folder."""

    name: str  # that folder, from the one that all designs share
    encoder: str
    model: str


Measures = dict[tuple[Design, str], list[float]]


def run_measures(metrics: Iterable[Line], maps: Iterable[Line]) -> dict[tuple[str, str], float]:
    """(model, measure) -> value of one run, from its metrics.csv and maps.csv; what has no value is left out."""
    found = {(line["model"], line["metric"]): float(line["value"]) for line in metrics if line["value"]}
    slides: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in maps:
        if line["held_out"] == "true" and line["auprc"]:
            slides[line["model"], _MAP + line["method"]].append(float(line["auprc"]))
    return found | {key: statistics.mean(values) for key, values in slides.items()}


def summary_rows(measures: Measures) -> list[list[str]]:
    """The lines of summary.csv; sd is the sample's, empty for a single run."""
    return [
        [design.name, design.encoder, design.model, measure, *_mean_sd(values), str(len(values))]
        for (design, measure), values in measures.items()
    ]


def summary_markdown(measures: Measures, shown: Sequence[str] | None = None) -> str:
    """A design a line, a measure a column (``shown``: default, all)."""
    designs = list(dict.fromkeys(design for design, _ in measures))
    names = [name for name in dict.fromkeys(name for _, name in measures) if shown is None or name in shown]
    lines = [["design", "encoder", "model", "runs", *names], ["---"] * (4 + len(names))]
    for design in designs:
        found = {name: values for (other, name), values in measures.items() if other == design}
        cells = [_plus_minus(found[name]) if name in found else "–" for name in names]
        runs = max(len(values) for values in found.values())
        lines.append([design.name, design.encoder, design.model, str(runs), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summarise(runs: Sequence[Path], out: Path) -> str:
    """Write ``out/summary.csv`` and ``out/summary.md`` of finished runs; returns the latter.

    Runs in one folder are one design. Raises ``ArtifactError`` where a run is not evaluated.
    """
    parents = [run.resolve().parent for run in runs]
    root = os.path.commonpath(parents)
    measures: Measures = defaultdict(list)
    for run, parent in zip(runs, parents, strict=True):
        folder = RunFolder(run)
        encoder = _encoder(run / "config.yaml")
        found = run_measures(_rows(folder.evaluate / "metrics.csv"), _rows(folder.evaluate / "maps.csv"))
        name = Path(os.path.relpath(parent, root)).as_posix() if str(parent) != root else parent.name
        for (model, measure), value in found.items():
            measures[Design(name, encoder, model), measure].append(value)
    text = summary_markdown(measures)
    write_text(out / "summary.csv", table(COLUMNS, summary_rows(measures)))
    write_text(out / "summary.md", text)
    return text


def _mean_sd(values: Sequence[float]) -> tuple[str, str]:
    return number(statistics.mean(values)), number(statistics.stdev(values)) if len(values) > 1 else ""


def _plus_minus(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _encoder(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["embed"]["encoder"])
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path} is not the config of a run; give folders of finished runs") from error


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ArtifactError(f"{path} is not there; run `wsi evaluate` first") from error
