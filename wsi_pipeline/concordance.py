"""Harrell's concordance, of training's validation and of evaluation alike."""

from __future__ import annotations

import math

import numpy as np

from .types import Bool, Float64, Int64


def concordance(time: Float64, event: Bool, risk: Float64, judge: Int64 | None = None) -> float:
    """Harrell's concordance index (JAMA 1982) of n follow-ups (n,): the share of comparable pairs ordered rightly.

    A pair is comparable where the one with the earlier time had the event; at equal times, where one had it and the
    other was censored, who is taken to live on. Right is the higher risk for the earlier; equal risks count half. NaN
    without a comparable pair. ``judge`` (n,): which ensemble gave the risk. A risk has no zero, so risks of two
    ensembles are not comparable either.
    """
    before = (time[event, None] < time) | ((time[event, None] == time) & ~event)  # (events, n) the row's event is first
    if judge is not None:
        before &= judge[event, None] == judge
    pairs = np.count_nonzero(before)
    higher = np.count_nonzero(before & (risk[event, None] > risk))
    equal = np.count_nonzero(before & (risk[event, None] == risk))
    return (higher + equal / 2) / pairs if pairs else math.nan
