"""Summary of a study's runs: mean ± sd of every measure over the seeds of each design."""

from __future__ import annotations

import csv
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..artifacts import read_key, write_text
from ..csvtable import csv_text, format_number
from ..errors import ArtifactError
from ..evaluate.summary import HEADLINES
from ..project import RunFolder

COLUMNS = ("design", "encoder", "model", "measure", "mean", "sd", "runs")
PATIENTS, MAP = "patients:", "map_auprc:"  # + measure; + method: mean over the held-out slides with an annotation

Line = Mapping[str, str]


@dataclass(frozen=True)
class Design:
    """Common properties of runs that differ in their seed only: the runs in one folder."""

    name: str  # that folder, relative to the common parent of all designs
    encoder: str
    model: str


Measures = dict[tuple[Design, str], list[float]]


def run_measures(
    metrics: Iterable[Line], patients: Iterable[Line], maps: Iterable[Line]
) -> dict[tuple[str, str], float]:
    """Collect the measures of one run.

    Values of patients are included for a model only if some of them differs from the slides' value: otherwise every
    slide is its own patient, and they are redundant.

    Parameters
    ----------
    metrics, patients, maps : iterable of mapping
        Lines of metrics.csv, metrics_patients.csv and maps.csv.

    Returns
    -------
    dict of (str, str) to float
        (model, measure) -> value; missing values are left out.
    """
    found = {(line["model"], line["metric"]): float(line["value"]) for line in metrics if line["value"]}
    of_patients = {(line["model"], line["metric"]): float(line["value"]) for line in patients if line["value"]}
    grouped = {key[0] for key, value in of_patients.items() if found.get(key) != value}
    found |= {(model, PATIENTS + name): value for (model, name), value in of_patients.items() if model in grouped}
    slides: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in maps:
        if line["held_out"] == "true" and line["auprc"]:
            slides[line["model"], MAP + line["method"]].append(float(line["auprc"]))
    return found | {key: statistics.mean(values) for key, values in slides.items()}


def summary_rows(measures: Measures) -> list[list[str]]:
    """The rows of summary.csv, columns as in ``COLUMNS``; sd is the sample standard deviation, empty for one run."""
    return [
        [design.name, design.encoder, design.model, measure, *_mean_sd(values), str(len(values))]
        for (design, measure), values in measures.items()
    ]


def summary_markdown(measures: Measures) -> str:
    """Format measures as Markdown, one line per design: the headline measures of slides and patients, and the maps."""
    designs = list(dict.fromkeys(design for design, _ in measures))
    known = dict.fromkeys(name for _, name in measures)
    names = [name for name in known if name.removeprefix(PATIENTS) in HEADLINES or name.startswith(MAP)]
    lines = [["design", "encoder", "model", "runs", *names], ["---"] * (4 + len(names))]
    for design in designs:
        found = {name: values for (other, name), values in measures.items() if other == design}
        cells = [_plus_minus(found[name]) if name in found else "–" for name in names]
        runs = max(len(values) for values in found.values())
        lines.append([design.name, design.encoder, design.model, str(runs), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summarise(runs: Sequence[Path], out: Path) -> str:
    """Write ``out/summary.csv`` and ``out/summary.md`` of finished runs; returns the text of the latter.

    Runs in one folder are one design. Raises ``ArtifactError`` if a run is not evaluated or has another
    schema.
    """
    parents = [run.resolve().parent for run in runs]
    root = os.path.commonpath(parents)
    measures: Measures = defaultdict(list)
    for run, parent in zip(runs, parents, strict=True):
        folder = RunFolder(run)
        read_key(folder.evaluate / "report.json")  # refuses a run of another schema
        encoder = _encoder(run / "config.yaml")
        tables = [_rows(folder.evaluate / name) for name in ("metrics.csv", "metrics_patients.csv", "maps.csv")]
        name = Path(os.path.relpath(parent, root)).as_posix() if str(parent) != root else parent.name
        for (model, measure), value in run_measures(*tables).items():
            measures[Design(name, encoder, model), measure].append(value)
    text = summary_markdown(measures)
    write_text(out / "summary.csv", csv_text(COLUMNS, summary_rows(measures)))
    write_text(out / "summary.md", text)
    return text


def _mean_sd(values: Sequence[float]) -> tuple[str, str]:
    return format_number(statistics.mean(values)), format_number(statistics.stdev(values)) if len(values) > 1 else ""


def _plus_minus(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _encoder(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["embed"]["encoder"])
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path} is not the config of a run; give the folders of finished runs") from error


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ArtifactError(f"{path} does not exist; run `wsi evaluate` first") from error
