"""Patch-flipping curves of all methods, a panel a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..types import Float64
from .plots import panels_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curves_png(models: Mapping[str, Mapping[str, Float64]]) -> bytes:
    """model -> method -> curve (P,) over the share of the bag that is gone, the most relevant first; random dashed.

    A method has one look in all panels.
    """
    names = sorted({name for curves in models.values() for name in curves} - {"random"})
    look = {name: (f"C{i % 10}", ("-", ":", "-.")[i // 10 % 3]) for i, name in enumerate(names)} | {
        "random": ("0.4", "--")
    }

    def draw(axes: Axes, panel: tuple[str, Mapping[str, Float64]]) -> None:
        model, curves = panel
        for name, curve in sorted(curves.items(), key=lambda one: one[1].mean()):
            color, style = look[name]
            share, label = np.linspace(0, 1, len(curve)), f"{name} ({curve.mean():.3f})"
            axes.plot(share, curve, label=label, linewidth=1.5, color=color, linestyle=style)
        axes.set(xlim=(0, 1), xlabel="Share of the patches gone", ylabel="Probability of the predicted class")
        axes.set_title(model, fontsize="medium")
        axes.legend(loc="best", fontsize="x-small")

    return panels_png(list(models.items()), draw)
