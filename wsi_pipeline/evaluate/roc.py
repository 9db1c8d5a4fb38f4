"""The ROC curves of all models in one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from .metrics import positive_classes
from .predictions import Scored

INCHES = 5.0
DPI = 120


def roc_png(models: Sequence[Scored]) -> bytes:
    """A PNG: one curve a model, or one a class against the rest where there are more than two.

    Curves whose class, or whose rest, is missing are left out. Same input, same bytes: no time, no program in it, and
    no settings of the user's.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from sklearn.metrics import auc, roc_curve

    with style.context("default", after_reset=True):
        figure = Figure(figsize=(INCHES, INCHES), dpi=DPI, layout="constrained")
        axes = figure.add_subplot(aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
        for model in models:
            for c in positive_classes(len(model.classes)):
                positive = model.truth == c
                if 0 < np.count_nonzero(positive) < len(positive):
                    false_rate, true_rate, _ = roc_curve(positive, model.probabilities[:, c])
                    name = f"{model.model}: {model.classes[c]} (AUC {auc(false_rate, true_rate):.3f})"
                    axes.plot(false_rate, true_rate, label=name, linewidth=1.5)
        axes.set_xlabel("False positive rate")
        axes.set_ylabel("True positive rate")
        axes.legend(loc="lower right", fontsize="small")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
