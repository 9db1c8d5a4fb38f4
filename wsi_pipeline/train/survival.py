"""Survival loss: Cox's partial likelihood."""

from __future__ import annotations

import torch
from torch import Tensor


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood of n patients, divided by the number of events.

    Parameters
    ----------
    risk : tensor (n,)
        Log hazard, up to an additive constant.
    time : tensor (n,)
        Follow-up, in any one unit.
    event : tensor (n,)
        1: event observed at ``time``; 0: censored.

    Returns
    -------
    tensor ()
        0 where there is no event.

    Notes
    -----
    Cox, "Regression models and life-tables", JRSS B 1972; ties after Breslow. The risk set at a patient's time
    consists of the patients with at least that follow-up.
    """
    if not bool(event.any()):
        return risk.sum() * 0.0
    at_risk = time[None, :] >= time[:, None]  # (n, n) column j is at risk when row i has its event
    of_risk_set = risk[None, :].masked_fill(~at_risk, -torch.inf).logsumexp(1)  # (n,)
    return ((of_risk_set - risk) * event).sum() / event.sum()
