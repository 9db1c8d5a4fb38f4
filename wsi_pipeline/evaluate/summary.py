"""The results of a run as tables for the terminal, and the names of measures for display."""

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
    "ece_calibrated": "Calibration error, temperature-scaled",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, temperature-scaled",
    "aurc": "Area under risk-coverage curve",
    "aurc_calibrated": "Area under risk-coverage curve, temperature-scaled",
    "coverage": "Coverage of prediction sets",
    "set_size": "Size of prediction sets",
    "abstained": "Fraction of abstentions",
    "accuracy_not_abstained": "Accuracy without abstentions",
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
EXPLANATION_HEADLINES = {  # columns after wsi evaluate explanations; explanations.md has all measures
    "aupc_drop": "AUPC ↓",
    "gain_drop": "gain ↑",
    "auprc": "AUPRC ↑",
    "map": "mAP ↑",
    "miou": "mIoU ↑",
    "mf1": "mF1 ↑",
    "pointing": "point ↑",
    "froc": "FROC ↑",
    "redrawn": "sanity → 0",
}
PICTURES = {  # the plots of the report in order: file -> caption
    "roc.png": "ROC curves",
    "pr.png": "Precision-recall curves",
    "confusion.png": "Confusion matrices",
    "reliability.png": "Reliability diagrams",
    "risk_coverage.png": "Risk-coverage curves",
    "scatter.png": "Predicted and true values",
    "froc.png": "FROC curves",
    "explanations.png": "Patch flipping",
}
_SENSITIVITY, _FROC_SENSITIVITY = "sensitivity_at_", "froc_sensitivity_at_"


def metric_name(metric: str) -> str:
    """Display name of a measure of report.json; ``auroc[x]`` is the AUROC of class x.

    >>> metric_name("auroc[tumour]")
    'AUROC, tumour'
    """
    name, bracket, of_class = metric.partition("[")
    if name.startswith(_SENSITIVITY):
        return f"Sensitivity at specificity {name.removeprefix(_SENSITIVITY)}"
    if name.startswith(_FROC_SENSITIVITY):
        return f"Lesions detected at {name.removeprefix(_FROC_SENSITIVITY)} false positives per slide"
    return NAMES.get(name, name) + (f", {of_class[:-1]}" if bracket else "")


def measure_text(measure: Mapping[str, Any] | None) -> tuple[str, str]:
    """Value and interval of a measure of report.json as text; a dash where it is undefined."""
    if not measure or measure.get("value") is None:
        return "–", ""
    low, high = measure.get("low"), measure.get("high")
    between = "" if low is None or high is None else f"({digits(low)}–{digits(high)})"
    return digits(measure["value"]), between


def read_summary(path: Path) -> list[Table]:
    """``summary_tables`` of a report.json; empty where it does not exist. Raises ``ArtifactError`` if it is damaged."""
    if not path.exists():
        return []
    try:
        return summary_tables(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); delete it and run `wsi evaluate` again") from error


def read_explanations_summary(path: Path) -> list[Table]:
    """explanations.csv as one table per model, one row per method; empty where it does not exist."""
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
        table.add_column(EXPLANATION_HEADLINES[name], min_width=max(map(len, columns[-1])))  # never truncate a number
    for method, *cells in zip(methods, *columns, strict=True):
        table.add_row(*map(Text, (method, *cells)))
    return table


def summary_tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report.json: the models, and the localisation of their maps where there are annotations."""
    return [_models_table(report), *([_maps_table(report["maps"])] if report.get("maps") else [])]


def _models_table(report: Mapping[str, Any]) -> Table:
    """One row per model and one column per headline: of the ensembles, and over seeds where there are several.

    Patients have their own rows where some have several slides. ``metrics.csv`` has all measures.
    """
    slides, patients = report["models"], report.get("patients", {})
    several = any(model["n_slides"] > model["n_patients"] for model in slides.values())
    blocks = [("slides", slides), *([("patients", patients)] if several else [])]
    lesions = {one["model"]: one["metrics"] for one in report.get("froc", ())}
    measured = [*(model["metrics"] for _, found in blocks for model in found.values()), *lesions.values()]
    names = [name for name in HEADLINES if any(name in metrics for metrics in measured)]
    seeds = {(one["model"], one["metric"]): one for one in report.get("seeds", ()) if len(one["values"]) > 1}
    of_seeds = [name for name in HEADLINES if any(name == metric for _, metric in seeds)]
    count = max((len(one["values"]) for one in seeds.values()), default=0)

    title = "held out: ensembles with 95 % intervals over patients" + ("; seeds ± sd" if seeds else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("of", overflow="fold")
    for title in (*map(metric_name, names), *(f"{metric_name(name)}, {count} seeds" for name in of_seeds)):
        table.add_column(title, overflow="fold")
    for what, found in blocks:
        for name, model in found.items():
            metrics = model["metrics"] | (lesions.get(name, {}) if what == "slides" else {})
            cells = [_two_lines(metrics.get(metric)) for metric in names]
            over_seeds = [mean_sd(seeds.get((name, metric)) if what == "slides" else None) for metric in of_seeds]
            table.add_row(*map(Text, (name, f"{model[f'n_{what}']} {what}", *cells, *over_seeds)))
        table.add_section()
    return table


def _maps_table(maps: Sequence[Mapping[str, Any]]) -> Table:
    title = "localisation of the maps: mean over the annotated held-out slides"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("model", "method", "class", "slides", *map(metric_name, MAP_MEANS)):
        table.add_column(column, overflow="fold")
    for one in maps:
        cells = [_two_lines(one[name]) for name in MAP_MEANS]
        table.add_row(*map(Text, (one["model"], one["method"], one["target"], str(one["n_slides"]), *cells)))
    return table


def _two_lines(measure: Mapping[str, Any] | None) -> str:
    """A value with its interval, shortened, on a second line."""
    value, between = measure_text(measure)
    return f"{value}\n{measure['low']:.2f}–{measure['high']:.2f}" if measure and between else value


def mean_sd(over_seeds: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation over seeds as text; only the mean for a single seed, empty for None."""
    if over_seeds is None:
        return ""
    sd = over_seeds["sd"]
    return digits(over_seeds["mean"]) + ("" if sd is None else f" ± {digits(sd)}")


def digits(value: float) -> str:
    """Format a number with three decimals, or one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
