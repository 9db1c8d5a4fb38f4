"""The decision threshold of a binary classifier, chosen on its validation slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_threshold(positive: Sequence[bool], scores: Sequence[float]) -> float:
    """The threshold t with the highest balanced accuracy, where ``score >= t`` is predicted positive.

    Parameters
    ----------
    positive : N booleans
        Whether each slide is of the positive class.
    scores : N floats
        Probability of the positive class, from 0 to 1.

    Returns
    -------
    float
        0.5 where a class is missing, since no threshold can be chosen then.

    Notes
    -----
    Candidates are the midpoints between neighbouring values of 0, the distinct scores, and 1; ties go to the candidate
    nearest to 0.5, then to the lower. With few validation slides the choice is noisy: one slide can move it far.

    >>> best_threshold([False, False, True], [0.1, 0.2, 0.6])
    0.4
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
