"""The measures of explanations over all slides: tables as CSV and Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artifacts import Provenance, discard, provenance_path, write_bytes, write_provenance, write_text
from ..config import EvaluateConfig
from ..csvtable import csv_text, format_number
from .flipping_plot import curves_png
from .froc_cohort import left_out_notes, relative_note
from .xai_statistics import (
    METRICS,
    OF_OVERLAP,
    POOLED,
    REFERENCES,
    Line,
    MeasuredSlide,
    ModelTable,
    model_lines,
    model_table,
)

CSV, MARKDOWN, PICTURE, MATRIX = "explanations.csv", "explanations.md", "explanations.png", "explanations_spearman.csv"
COLUMNS = ("model", "method", "metric", "value", "low", "high", "n_slides", "n_patients", "p_attention", "p_random")


def join_explanations(
    slides: Sequence[MeasuredSlide], section: EvaluateConfig, *, output: Path, provenance: Provenance
) -> int:
    """Write the tables, the plot and, last, the provenance of explanations.csv.

    Parameters
    ----------
    slides : sequence of MeasuredSlide
    section : EvaluateConfig
    output : Path
        explanations.csv; the other files are written beside it.
    provenance : Provenance

    Returns
    -------
    int
        Number of slides.
    """
    provenance_path(output).unlink(missing_ok=True)  # not current from the first file that changes
    models = [model_table([s for s in slides if s.model == name]) for name in dict.fromkeys(s.model for s in slides)]
    lines = [line for model in models for line in model_lines(model, section)]
    write_text(output, csv_text(COLUMNS, map(_cells, lines)))
    write_text(output.parent / MATRIX, matrix_table(models))
    write_text(output.parent / MARKDOWN, markdown(models, lines))
    if models:
        curves = {one.model: {name: method.curve for name, method in one.methods.items()} for one in models}
        write_bytes(output.parent / PICTURE, curves_png(curves, {one.model: one.task for one in models}))
    else:
        discard(output.parent / PICTURE)
    write_provenance(output, provenance)
    return len({slide.slide_id for slide in slides})


def matrix_table(models: Sequence[ModelTable]) -> str:
    """The text of explanations_spearman.csv: one row per model and method, one column per method."""
    names = list(dict.fromkeys(name for one in models for name in one.methods))
    rows = []
    for one in models:
        for name, row in zip(one.methods, one.spearman.tolist(), strict=True):
            correlation = dict(zip(one.methods, row, strict=True))
            rows.append([one.model, name, *(format_number(correlation.get(other)) for other in names)])
    return csv_text(["model", "method", *names], rows)


def markdown(models: Sequence[ModelTable], lines: Sequence[Line]) -> str:
    """The text of explanations.md: one table per model and group of metrics, one row per method."""
    text = ["# Evaluation of explanations", "", *_PREFACE]
    for one in models:
        text += ["", f"## {one.model}", "", f"{len(one.patients)} slides of {len(set(one.patients))} patients."]
        for title, group in _GROUPS.items():
            own = {(line.method, line.metric): line for line in lines if line.model == one.model}
            measured = [metric for metric in group if any((name, metric) in own for name in one.methods)]
            names = [name for name in one.methods if any((name, metric) in own for metric in measured)]
            if not names:
                continue
            heads = [f"{METRICS[metric].title} {METRICS[metric].better}".strip() for metric in measured]
            text += ["", f"### {title}", "", _row(["method", *heads]), _row(["---"] * (len(heads) + 1))]
            for name in names:
                text.append(_row([name, *(_value(own.get((name, metric))) for metric in measured)]))
            if "froc" in measured:
                text += ["", *(f"- {note}" for note in _froc_notes(one))]
    return "\n".join(text) + "\n"


_GROUPS = {
    "Faithfulness": [*(name for name in METRICS if name.endswith(("_drop", "_replace"))), "infidelity"],
    "Localisation": [*POOLED, *OF_OVERLAP, "dice", "froc"],
    "Sanity and cost": ["redrawn", "sensitivity", "seconds", "peak_mb"],
}
_PREFACE = [
    "Means over held-out slides with 95 % bootstrap intervals over patients. The method random is the baseline.",
    "",
    "- AUPC: mean prediction while patches are removed, the most relevant first. The prediction is the probability of",
    "  the predicted class (multilabel: of the most probable label); for regression the value,",
    "  for survival the log hazard. Insertion: the same with the least relevant removed first. Gain: insertion minus",
    "  AUPC. Replaced: patches are not removed but replaced by the mean of the bag.",
    "- Infidelity: how far the scores of a square of patches are from summing to the drop of the explained output when",
    "  these are replaced by the mean of the bag; 0: they sum exactly, 1: no better than a map of zeros. For",
    "  attributions only, at their best scale.",
    "- Pixel accuracy and mIoU: of the map thresholded at its own mean, from counts over all slides. Dice: at the",
    "  threshold that is best on the other patients.",
    "- FROC: of the last of two classes, over its slides with lesions and the normal ones; mean fraction of lesions",
    "  detected at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide.",
    "- Similarity to random weights: rank correlation with the map of the same architecture with random weights.",
    "- Cost: of one slide's map by all members. Peak MiB: memory used beyond that before; on a CPU resident memory of",
    "  the process, sampled every 2 ms; on CUDA the memory allocated by torch.",
    "- Tests against attention and random (Wilcoxon over patients, not corrected) are in explanations.csv.",
]


def _froc_notes(model: ModelTable) -> list[str]:
    """Caveats of the FROC column, and the slides left out of it."""
    methods: dict[str, list[str]] = {}
    for name, method in model.methods.items():
        if method.unit not in (None, "probability"):
            methods.setdefault(method.unit, []).append(name)
    of_head = {"FROC": left_out_notes(model.left_out)}
    of_head |= {f"FROC of {', '.join(names)}": [relative_note(unit)] for unit, names in methods.items()}
    return [f"{head}: {note}" for head, notes in of_head.items() for note in notes]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(line: Line | None) -> str:
    if line is None or np.isnan(line.found.value):
        return "–"
    between = "" if np.isnan(line.found.low) else f" ({line.found.low:.3g} to {line.found.high:.3g})"
    return f"{line.found.value:.3g}{between}"


def _cells(line: Line) -> list[object]:
    interval = [format_number(getattr(line.found, name)) for name in ("value", "low", "high")]
    counts = [line.n_slides, line.n_patients]
    return [line.model, line.method, line.metric, *interval, *counts, *(format_number(line.p[r]) for r in REFERENCES)]
