"""Time to event: Cox's partial likelihood."""

from __future__ import annotations

import torch
from torch import Tensor


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
