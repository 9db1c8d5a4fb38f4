"""Curves and counts of all models, one picture each. Same input, same bytes: no time, no program in it, and no
settings of the user's."""

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
    """Every picture of the models' task; None where there is nothing to draw. (``froc.png``: see ``froc_png``.)"""
    ranked = [m for m in models if one_against_rest(m)]
    classified = [m for m in models if m.task == "classification"]
    believed = [m for m in models if m.task in ("classification", "multilabel")]
    valued = [m for m in models if m.task == "regression"]
    return {
        "roc.png": roc_png(ranked) if ranked else None,
        "pr.png": pr_png(ranked) if ranked else None,
        "confusion.png": confusion_png(classified) if classified else None,
        "reliability.png": reliability_png(believed, bins) if believed else None,
        "risk_coverage.png": risk_coverage_png(classified) if classified else None,
        "scatter.png": scatter_png(valued) if valued else None,
    }


def roc_png(models: Sequence[Scored]) -> bytes:
    """One curve a model, or one a class against the rest where there are more than two, or of multilabel.

    Curves whose class, or whose rest, is missing are left out.
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
    """As ``roc_png``, recall and precision. The dotted lines: the share of positives, what chance reaches."""

    def draw(axes: Axes) -> None:
        for model in models:
            for _, c, positive in one_against_rest(model):
                found = ranking(positive, model.outcome[:, c])
                recall, precision = found.hits / found.hits[-1], found.hits / (found.hits + found.alarms)
                name = f"{model.model}: {model.classes[c]} (AP {average_precision(found):.3f})"
                (line,) = axes.step(  # each threshold's precision counts for the recall that it adds
                    np.append(0, recall), np.append(precision[0], precision), where="pre", label=name, linewidth=1.5
                )
                axes.axhline(float(positive.mean()), color=line.get_color(), linewidth=1, linestyle=":")
        axes.set_xlabel("Recall")
        axes.set_ylabel("Precision")
        axes.legend(loc="lower left", fontsize="small")

    return _unit_square(draw)


def confusion(model: Scored) -> Float64:
    """Counts (C, C): true class, predicted class."""
    classes = len(model.classes)
    counts = np.bincount(model.truth * classes + decide(model.outcome, model.threshold), minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.float64)


def confusion_png(models: Sequence[Scored]) -> bytes:
    """A matrix a model: counts, coloured by their share of the true class."""

    def draw(axes: Axes, model: Scored) -> None:
        counts = confusion(model)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.5
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color="white" if dark else "black")
        places = range(len(model.classes))
        axes.set_xticks(places, model.classes, rotation=30, ha="right")
        axes.set_yticks(places, model.classes)
        axes.set_xlabel("Predicted")
        axes.set_ylabel("True")
        axes.set_title(model.model, fontsize="medium")

    return panels_png(models, draw)


def reliability_png(models: Sequence[Scored], bins: int) -> bytes:
    """A panel a model: how often it was right where it was that confident, as it came and after temperature.

    Classification: of the likeliest class. Multilabel: of every class of every slide.
    """

    def draw(axes: Axes, model: Scored) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
        for name, given in (("as it came", model.outcome), ("after temperature", model.calibrated)):
            flat = given.ravel(), model.truth.ravel()
            confidence, hit = flat if model.task == "multilabel" else top_label(model.truth, given)
            found = reliability(confidence, hit, bins)
            axes.plot(found.confidence, found.hit_rate, marker="o", markersize=4, linewidth=1.5, label=name)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="Confidence", ylabel="Share right")
        axes.set_title(model.model, fontsize="medium")
        axes.legend(loc="upper left", fontsize="small")

    return panels_png(models, draw)


def risk_coverage_png(models: Sequence[Scored]) -> bytes:
    """A curve a model: the share that is wrong of those it is most confident of, after temperature."""

    def draw(axes: Axes) -> None:
        for model in models:
            coverage, risk = risk_coverage(*top_label(model.truth, model.calibrated))
            axes.plot(coverage, risk, label=f"{model.model} (area {risk.mean():.3f})", linewidth=1.5)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, None), xlabel="Share answered", ylabel="Share of these wrong")
        axes.legend(loc="upper right", fontsize="small")

    return _one(draw)


def scatter_png(models: Sequence[Scored]) -> bytes:
    """A panel a model: predicted against true values."""

    def draw(axes: Axes, model: Scored) -> None:
        ends = [f(np.append(model.truth, model.outcome)) for f in (np.min, np.max)]
        axes.plot(ends, ends, color="0.7", linewidth=1, linestyle="--")
        axes.scatter(model.truth, model.outcome[:, 0], s=12)
        axes.set(xlabel="True", ylabel="Predicted")
        axes.set_title(model.model, fontsize="medium")

    return panels_png(models, draw)


def froc_png(curves: Sequence[tuple[str, Float64, Float64]]) -> bytes:
    """A curve each: name, false positives per slide (k,), sensitivity (k,), from the highest threshold on."""

    def draw(axes: Axes) -> None:
        for name, alarms, sensitivity in curves:
            axes.plot(alarms, sensitivity, label=name, linewidth=1.5)  # straight between its points, as it is scored
        axes.set_xscale("symlog", base=2, linthresh=0.125)
        axes.set(xlim=(0, 16), ylim=(-0.01, 1.01), xlabel="False positives per slide", ylabel="Lesions found")
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
    """A PNG of ``panels`` side by side, three in a row at most."""
    from matplotlib import style
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    side = INCHES if len(panels) == 1 else 0.7 * INCHES
    # Names are shown as they are: a $ in a class is no formula.
    with style.context(["default", {"text.parse_math": False}], after_reset=True):
        figure = Figure(figsize=(columns * side, rows * side), dpi=DPI, layout="constrained")
        for i, panel in enumerate(panels):
            draw(figure.add_subplot(rows, columns, i + 1), panel)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
