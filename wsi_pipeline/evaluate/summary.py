"""The end of a run in one table: every model, every measure, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

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
PICTURES = {  # what the report shows, in its order: file -> what it is
    "roc.png": "ROC curves",
    "pr.png": "Precision and recall",
    "confusion.png": "Confusion matrices",
    "reliability.png": "Reliability",
    "risk_coverage.png": "Risk and coverage",
    "scatter.png": "Predicted and true values",
    "froc.png": "FROC curves",
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


def summary_table(report: Mapping[str, Any]) -> Table:
    """report.json as a table: a line a measure, a column a model; patients where they are not the slides again; FROC.

    In brackets: 95 % bootstrap interval over patients.
    """
    slides, patients = report["models"], report.get("patients", {})
    apart = any(model["n_slides"] > model["n_patients"] for model in slides.values())
    lesions = {one["model"]: one for one in report.get("froc", ()) if one["metrics"]}
    blocks = [("slides measured", slides, "n_slides")]
    blocks += [("patients measured", patients, "n_patients")] if apart and patients else []
    blocks += [("slides searched for lesions", lesions, "n_slides")] if lesions else []
    models = list(dict.fromkeys(name for _, found, _ in blocks for name in found))
    table = Table(title="held out, with 95 % intervals over patients")
    table.add_column("measure", overflow="fold")
    for name in models:
        table.add_column(Text(name), overflow="fold")
    for what, found, count in blocks:
        table.add_section()
        table.add_row(Text(what), *(Text(str(found[m][count]) if m in found else "–") for m in models))
        metrics = dict.fromkeys(metric for model in found.values() for metric in model["metrics"])
        for metric in metrics:
            cells = [measure_text(found[m]["metrics"].get(metric) if m in found else None) for m in models]
            table.add_row(Text(metric_name(metric)), *(Text(" ".join(cell).strip()) for cell in cells))
    return table


def digits(value: float) -> str:
    """Three decimals; one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
