"""Plots of all models' predictions as PNGs. The same input gives the same bytes: they contain no time and no program
name, and the user's matplotlib settings have no effect."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..types import Float64
from .calibration import reliability, risk_coverage, top_label
from .metrics import decide
from .predictions import Scored
from .ranking import auroc, average_precision, ranking
from .task_metrics import one_against_rest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Panel = TypeVar("_Panel")
INCHES = 5.0
DPI = 120


def pictures(models: Sequence[Scored], bins: int) -> dict[str, bytes | None]:
    """File name -> plot of the models for their task; None where there is nothing to plot. For FROC see ``froc_png``.

    ``bins``: number of bins of the reliability diagram.
    """
    ranked = [m for m in models if one_against_rest(m)]
    classified = [m for m in models if m.task == "classification"]
    probabilistic = [m for m in models if m.task in ("classification", "multilabel")]
    regression = [m for m in models if m.task == "regression"]
    return {
        "roc.png": roc_png(ranked) if ranked else None,
        "pr.png": pr_png(ranked) if ranked else None,
        "confusion.png": confusion_png(classified) if classified else None,
        "reliability.png": reliability_png(probabilistic, bins) if probabilistic else None,
        "risk_coverage.png": risk_coverage_png(classified) if classified else None,
        "scatter.png": scatter_png(regression) if regression else None,
    }


def roc_png(models: Sequence[Scored]) -> bytes:
    """ROC curves: one per model, or one per class against the rest for more than two classes and for multilabel.

    Curves without positives or without negatives are left out.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
        for model in models:
            for _, c, positive in one_against_rest(model):
                found = ranking(positive, model.outcome[:, c])
                false_rate, true_rate = (np.append(0, n) / n[-1] for n in (found.alarms, found.hits))
                name = f"{model.model}: {model.classes[c]} (AUC {auroc(found):.3f})"
                axes.plot(false_rate, true_rate, label=name, linewidth=1.5)
        axes.set_xlabel("False positive rate")
        axes.set_ylabel("True positive rate")
        axes.legend(loc="lower right", fontsize="small")

    return _unit_square(draw)


def pr_png(models: Sequence[Scored]) -> bytes:
    """Precision-recall curves, as ``roc_png``. The dotted lines are the fraction of positives, that is, chance."""

    def draw(axes: Axes) -> None:
        for model in models:
            for _, c, positive in one_against_rest(model):
                found = ranking(positive, model.outcome[:, c])
                recall, precision = found.hits / found.hits[-1], found.hits / (found.hits + found.alarms)
                name = f"{model.model}: {model.classes[c]} (AP {average_precision(found):.3f})"
                (line,) = axes.step(  # the precision of each threshold applies to the recall that it adds
                    np.append(0, recall), np.append(precision[0], precision), where="pre", label=name, linewidth=1.5
                )
                axes.axhline(float(positive.mean()), color=line.get_color(), linewidth=1, linestyle=":")
        axes.set_xlabel("Recall")
        axes.set_ylabel("Precision")
        axes.legend(loc="lower left", fontsize="small")

    return _unit_square(draw)


def confusion(model: Scored) -> Float64:
    """Counts (C, C) by true class (row) and predicted class (column)."""
    classes = len(model.classes)
    counts = np.bincount(model.truth * classes + decide(model.outcome, model.threshold), minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.float64)


def confusion_png(models: Sequence[Scored]) -> bytes:
    """Confusion matrices, one per model: counts, coloured by their fraction of the true class."""

    def draw(axes: Axes, model: Scored) -> None:
        counts = confusion(model)
        fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            dark = fractions[row, column] > 0.5
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color="white" if dark else "black")
        places = range(len(model.classes))
        axes.set_xticks(places, model.classes, rotation=30, ha="right")
        axes.set_yticks(places, model.classes)
        axes.set_xlabel("Predicted")
        axes.set_ylabel("True")
        axes.set_title(model.model, fontsize="medium")

    return panels_png(models, draw)


def reliability_png(models: Sequence[Scored], bins: int) -> bytes:
    """Reliability diagrams, one per model: accuracy over confidence, before and after temperature scaling.

    Classification: of the most probable class. Multilabel: of every label of every slide.
    """

    def draw(axes: Axes, model: Scored) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
        for name, given in (("uncalibrated", model.outcome), ("temperature-scaled", model.calibrated)):
            flat = given.ravel(), model.truth.ravel()
            confidence, correct = flat if model.task == "multilabel" else top_label(model.truth, given)
            found = reliability(confidence, correct, bins)
            axes.plot(found.confidence, found.accuracy, marker="o", markersize=4, linewidth=1.5, label=name)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="Confidence", ylabel="Accuracy")
        axes.set_title(model.model, fontsize="medium")
        axes.legend(loc="upper left", fontsize="small")

    return panels_png(models, draw)


def risk_coverage_png(models: Sequence[Scored]) -> bytes:
    """Risk-coverage curves, one per model: error rate among its most confident predictions, temperature-scaled."""

    def draw(axes: Axes) -> None:
        for model in models:
            coverage, risk = risk_coverage(*top_label(model.truth, model.calibrated))
            axes.plot(coverage, risk, label=f"{model.model} (area {risk.mean():.3f})", linewidth=1.5)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, None), xlabel="Coverage", ylabel="Risk (error rate)")
        axes.legend(loc="upper right", fontsize="small")

    return _one(draw)


def scatter_png(models: Sequence[Scored]) -> bytes:
    """Predicted over true values of regression, one panel per model."""

    def draw(axes: Axes, model: Scored) -> None:
        ends = [f(np.append(model.truth, model.outcome)) for f in (np.min, np.max)]
        axes.plot(ends, ends, color="0.7", linewidth=1, linestyle="--")
        axes.scatter(model.truth, model.outcome[:, 0], s=12)
        axes.set(xlabel="True", ylabel="Predicted")
        axes.set_title(model.model, fontsize="medium")

    return panels_png(models, draw)


def froc_png(curves: Sequence[tuple[str, Float64, Float64]]) -> bytes:
    """FROC curves: name, false positives per slide (k,) and sensitivity (k,), from the highest threshold."""

    def draw(axes: Axes) -> None:
        for name, false_rate, sensitivity in curves:
            axes.plot(false_rate, sensitivity, label=name, linewidth=1.5)  # linear between points, as in the score
        axes.set_xscale("symlog", base=2, linthresh=0.125)
        axes.set(xlim=(0, 16), ylim=(-0.01, 1.01), xlabel="False positives per slide", ylabel="Lesions detected")
        ticks = (0, 0.25, 0.5, 1, 2, 4, 8, 16)
        axes.set_xticks(ticks, ["0", "¼", "½", *map(str, ticks[3:])])
        axes.legend(loc="upper left", fontsize="small")

    return _one(draw)


def _unit_square(draw: Callable[[Axes], None]) -> bytes:
    def square(axes: Axes) -> None:
        axes.set(aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        draw(axes)

    return _one(square)


def _one(draw: Callable[[Axes], None]) -> bytes:
    return panels_png([None], lambda axes, _: draw(axes))


def panels_png(panels: Sequence[_Panel], draw: Callable[[Axes, _Panel], None]) -> bytes:
    """A PNG with one subplot per panel, up to three in a row; ``draw`` fills the axes of each."""
    from matplotlib import style
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    side = INCHES if len(panels) == 1 else 0.7 * INCHES
    # Names are shown literally: a $ in a class name does not start a formula.
    with style.context(["default", {"text.parse_math": False}], after_reset=True):
        figure = Figure(figsize=(columns * side, rows * side), dpi=DPI, layout="constrained")
        for i, panel in enumerate(panels):
            draw(figure.add_subplot(rows, columns, i + 1), panel)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
