"""The one number that every method explains."""

from __future__ import annotations

import torch
from torch import Tensor


def contrast(logits: Tensor, target: int) -> Tensor:
    """Class ``target`` against the rest, (..., C) -> (...): its logit less the mean of the others' logits.

    A logit alone is arbitrary up to a constant that all classes share; the contrast is not. For two classes it is
    y_c - y_c', the log odds of the class. Linear, so it also turns evidence per class into evidence for the contrast.
    """
    classes = logits.shape[-1]
    weights = torch.full((classes,), -1.0 / max(classes - 1, 1), dtype=logits.dtype, device=logits.device)
    weights[target] = 1.0
    return logits @ weights
