"""Contrast between the logits of a softmax: the target of classification."""

from __future__ import annotations

import torch
from torch import Tensor


def contrast(logits: Tensor, target: int) -> Tensor:
    """Logit of class ``target`` less the mean of the other classes' logits.

    A single logit is defined up to a constant that all classes share; the contrast is independent of it. For two
    classes it is y_c - y_c', the log odds of the class. It is linear, so it also applies to evidence per class.

    Parameters
    ----------
    logits : Tensor, (..., C)
    target : int
        Index of the class.

    Returns
    -------
    Tensor, (...)
        With a single class, its logit.

    Examples
    --------
    >>> contrast(torch.tensor([1.0, 4.0, 7.0]), 2).item()
    4.5
    """
    classes = logits.shape[-1]
    weights = torch.full((classes,), -1.0 / max(classes - 1, 1), dtype=logits.dtype, device=logits.device)
    weights[target] = 1.0
    return logits @ weights
