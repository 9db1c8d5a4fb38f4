"""The end of a run: what its models reach, as people say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..csvtable import read_csv
from ..errors import ArtifactError

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "accuracy": "Accuracy",
    "ece": "Calibration error",
    "ece_calibrated": "Calibration error, after temperature",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, after temperature",
    "aurc": "Area under risk and coverage",
    "aurc_calibrated": "Area under risk and coverage, after temperature",
    "coverage": "Coverage of prediction sets",
    "set_size": "Size of prediction sets",
    "abstained": "Share abstained",
    "accuracy_not_abstained": "Accuracy where not abstained",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "concordance": "Concordance index",
    "froc": "FROC score",
    "base_rate": "Base rate",
    "lift": "AUPRC / base rate",
}
HEADLINES = ("auroc", "auprc", "balanced_accuracy", "mae", "r2", "concordance", "froc")
MAP_MEANS = ("auprc", "base_rate", "lift")
EXPLANATION_HEADLINES = {  # of wsi evaluate explanations; explanations.md has every measure
    "aupc_drop": "AUPC ↓",
    "gain_drop": "gain ↑",
    "auprc": "AUPRC ↑",
    "map": "mAP ↑",
    "miou": "mIoU ↑",
    "mf1": "mF1 ↑",
    "pointing": "point ↑",
    "froc": "FROC ↑",
    "redrawn": "redraw → 0",
}
PICTURES = {  # what the report shows, in its order: file -> what it is
    "roc.png": "ROC curves",
    "pr.png": "Precision and recall",
    "confusion.png": "Confusion matrices",
    "reliability.png": "Reliability",
    "risk_coverage.png": "Risk and coverage",
    "scatter.png": "Predicted and true values",
    "froc.png": "FROC curves",
    "explanations.png": "Patch flipping",
}
_SENSITIVITY, _FROC_SENSITIVITY = "sensitivity_at_", "froc_sensitivity_at_"


def metric_name(metric: str) -> str:
    """A measure of report.json as people say it: ``auroc[x]`` is the AUROC of class x."""
    name, bracket, of = metric.partition("[")
    if name.startswith(_SENSITIVITY):
        return f"Sensitivity at specificity {name.removeprefix(_SENSITIVITY)}"
    if name.startswith(_FROC_SENSITIVITY):
        return f"Lesions found at {name.removeprefix(_FROC_SENSITIVITY)} false positives a slide"
    return NAMES.get(name, name) + (f", {of[:-1]}" if bracket else "")


def measure_text(measure: Mapping[str, Any] | None) -> tuple[str, str]:
    """Value and interval of a measure of report.json; a dash where there is no number."""
    if not measure or measure.get("value") is None:
        return "–", ""
    low, high = measure.get("low"), measure.get("high")
    between = "" if low is None or high is None else f"({digits(low)}–{digits(high)})"
    return digits(measure["value"]), between


def read_summary(path: Path) -> list[Table]:
    """``summary_tables`` of a report.json; none where evaluate left none. Raises ``ArtifactError`` if it is damaged."""
    if not path.exists():
        return []
    try:
        return summary_tables(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run `wsi evaluate` again") from error


def read_explanations_summary(path: Path) -> list[Table]:
    """explanations.csv as a table a model, a line a method; none where it is not there."""
    if not path.exists():
        return []
    header, rows = read_csv(path)
    lines = [dict(zip(header, row, strict=True)) for row in rows]
    return [
        _methods_table(name, [x for x in lines if x["model"] == name])
        for name in dict.fromkeys(x["model"] for x in lines)
    ]


def _methods_table(model: str, lines: Sequence[Mapping[str, str]]) -> Table:
    found = {(line["method"], line["metric"]): line for line in lines}
    shown = [name for name in EXPLANATION_HEADLINES if any(metric == name for _, metric in found)]
    slides = max(int(line["n_slides"]) for line in lines)
    title = f"explanations of {model}: means over {slides} held-out slides; intervals in explanations.md"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("method", no_wrap=True)
    methods = list(dict.fromkeys(line["method"] for line in lines))
    columns = []
    for name in shown:
        values = [found[method, name]["value"] if (method, name) in found else "" for method in methods]
        columns.append([digits(float(value)) if value else "–" for value in values])
        table.add_column(EXPLANATION_HEADLINES[name], min_width=max(map(len, columns[-1])))  # a number is never cut
    for method, *cells in zip(methods, *columns, strict=True):
        table.add_row(*map(Text, (method, *cells)))
    return table


def summary_tables(report: Mapping[str, Any]) -> list[Table]:
    """The end of a run from report.json: the models, and their maps against the annotations where there are any."""
    return [_models_table(report), *([_maps_table(report["maps"])] if report.get("maps") else [])]


def _models_table(report: Mapping[str, Any]) -> Table:
    """A line a model, a column a headline: of the ensembles, and over the seeds where there are several.

    Patients stand apart where they are not the slides again. ``metrics.csv`` has every measure.
    """
    slides, patients = report["models"], report.get("patients", {})
    apart = any(model["n_slides"] > model["n_patients"] for model in slides.values())
    blocks = [("slides", slides), *([("patients", patients)] if apart else [])]
    lesions = {one["model"]: one["metrics"] for one in report.get("froc", ())}
    known = [*(model["metrics"] for _, found in blocks for model in found.values()), *lesions.values()]
    names = [name for name in HEADLINES if any(name in metrics for metrics in known)]
    seeds = {(one["model"], one["metric"]): one for one in report.get("seeds", ()) if len(one["values"]) > 1}
    again = [name for name in HEADLINES if any(name == metric for _, metric in seeds)]
    count = max((len(one["values"]) for one in seeds.values()), default=0)

    title = "held out: ensembles with 95 % intervals over patients" + ("; seeds ± sd" if seeds else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("of", overflow="fold")
    for title in (*map(metric_name, names), *(f"{metric_name(name)}, {count} seeds" for name in again)):
        table.add_column(title, overflow="fold")
    for what, found in blocks:
        for model, said in found.items():
            metrics = said["metrics"] | (lesions.get(model, {}) if what == "slides" else {})
            cells = [_two_lines(metrics.get(name)) for name in names]
            moved = [mean_sd(seeds.get((model, name)) if what == "slides" else None) for name in again]
            table.add_row(*map(Text, (model, f"{said[f'n_{what}']} {what}", *cells, *moved)))
        table.add_section()
    return table


def _maps_table(maps: Sequence[Mapping[str, Any]]) -> Table:
    title = "maps against the annotations: mean over the held-out slides that have one"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("model", "method", "class", "slides", *map(metric_name, MAP_MEANS)):
        table.add_column(column, overflow="fold")
    for one in maps:
        cells = [_two_lines(one[name]) for name in MAP_MEANS]
        table.add_row(*map(Text, (one["model"], one["method"], one["target"], str(one["n_slides"]), *cells)))
    return table


def _two_lines(measure: Mapping[str, Any] | None) -> str:
    """A value and, in short, its interval below it."""
    value, between = measure_text(measure)
    return f"{value}\n{measure['low']:.2f}–{measure['high']:.2f}" if measure and between else value


def mean_sd(over_seeds: Mapping[str, Any] | None) -> str:
    """A measure over seeds, of report.json; no sd of a single seed, empty for none."""
    if over_seeds is None:
        return ""
    sd = over_seeds["sd"]
    return digits(over_seeds["mean"]) + ("" if sd is None else f" ± {digits(sd)}")


def digits(value: float) -> str:
    """Three decimals; one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
