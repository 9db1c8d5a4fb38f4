"""Plot of the patch-flipping curves of all methods, one panel per model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..types import Float64
from .plots import panels_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PREDICTION = {
    "classification": "Probability of the predicted class",
    "multilabel": "Probability of the most probable label",
    "regression": "Predicted value",
    "survival": "Predicted risk (log hazard)",
}


def curves_png(models: Mapping[str, Mapping[str, Float64]], tasks: Mapping[str, str]) -> bytes:
    """Plot patch-flipping curves.

    Parameters
    ----------
    models : mapping of model to mapping of method to array (P,)
        The ensemble's prediction over the fraction of patches removed, from 0 to 1, the most relevant first. Random
        scores are dashed; every method has the same colour and line in all panels.
    tasks : mapping of model to task
        What the vertical axis is.

    Returns
    -------
    bytes
        A PNG.
    """
    names = sorted({name for curves in models.values() for name in curves} - {"random"})
    styles = {name: (f"C{i % 10}", ("-", ":", "-.")[i // 10 % 3]) for i, name in enumerate(names)} | {
        "random": ("0.4", "--")
    }

    def draw(axes: Axes, panel: tuple[str, Mapping[str, Float64]]) -> None:
        model, curves = panel
        for name, curve in sorted(curves.items(), key=lambda one: one[1].mean()):
            color, style = styles[name]
            removed, label = np.linspace(0, 1, len(curve)), f"{name} ({curve.mean():.3f})"
            axes.plot(removed, curve, label=label, linewidth=1.5, color=color, linestyle=style)
        axes.set(xlim=(0, 1), xlabel="Fraction of patches removed", ylabel=_PREDICTION[tasks[model]])
        axes.set_title(model, fontsize="medium")
        axes.legend(loc="best", fontsize="x-small")

    return panels_png(list(models.items()), draw)
