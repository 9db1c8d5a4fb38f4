"""The operating point of a binary model, from its validation slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_threshold(positive: Sequence[bool], scores: Sequence[float]) -> float:
    """The threshold t with the best balanced accuracy, where ``score >= t`` means positive.

    Candidates are the midpoints between neighbouring values of 0, the distinct scores, and 1; among equally good ones
    the nearest to 0.5 wins, then the lower. 0.5 where a class is missing, since nothing can be chosen then.
    With a handful of validation slides this is a noisy choice: one slide more or less moves it by much.
    """
    truth, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return 0.5
    borders = np.unique(np.concatenate([values, [0.0, 1.0]]))
    candidates = (borders[:-1] + borders[1:]) / 2
    hits = (values[None] >= candidates[:, None]) & truth  # (candidates, N)
    rejections = (values[None] < candidates[:, None]) & ~truth
    # Balanced accuracy times 2 * positives * negatives: whole numbers, so ties are exact.
    gain = hits.sum(1) * negatives + rejections.sum(1) * positives
    ties = candidates[gain == gain.max()]
    return float(ties[np.argmin(np.abs(ties - 0.5))])
