"""Time to event: Cox's partial likelihood and Harrell's concordance."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..types import Bool, Float64


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood per event of n patients, ties after Breslow; 0 where no event is among them.

    ``risk`` (n,) log relative risk, ``time`` (n,), ``event`` (n,) 1 seen, 0 censored. At risk at a patient's time is
    who is followed at least as long. Cox, "Regression models and life-tables", JRSS B 1972.
    """
    if not bool(event.any()):
        return risk.sum() * 0.0
    at_risk = time[None, :] >= time[:, None]  # (n, n) column j is at risk when row i has its event
    among = risk[None, :].masked_fill(~at_risk, -torch.inf).logsumexp(1)  # (n,)
    return ((among - risk) * event).sum() / event.sum()


def concordance(risk: Float64, time: Float64, event: Bool) -> float:
    """Share of comparable pairs in which who has the event first has the higher risk; ties of risk count a half.

    Comparable: i's event was seen, and j is followed longer, or as long and censored. (n,) each; NaN where no pair is.
    Harrell, Lee and Mark, Statistics in Medicine 1996. One row of pairs at a time.
    """
    won = pairs = 0.0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & ~event)
        pairs += float(later.sum())
        won += float((risk[i] > risk[later]).sum()) + 0.5 * float((risk[i] == risk[later]).sum())
    return won / pairs if pairs else math.nan
