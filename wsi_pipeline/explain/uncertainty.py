"""How far a map can be trusted, patch by patch: do the members agree, is the patch itself clear, was it ever seen."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from ..types import Float32, Float64

NEAREST = 5  # neighbours whose mean distance counts
_BLOCK = 4096  # patches that are compared with the reference at a time


def spread(scores: Float64) -> Float64:
    """Standard deviation (N,) of the scores (M, N) that M >= 2 members give, of the sample; in the method's unit."""
    deviation: Float64 = scores.std(axis=0, ddof=1)
    return deviation


def sign_agreement(scores: Float64) -> Float64:
    """How much M members agree on the sign of a patch, (M, N) -> (N,): 1 all of them, 0 as many for as against it."""
    agreement: Float64 = np.abs(np.sign(scores).mean(axis=0))
    return agreement


def entropy(probabilities: Float64) -> Float64:
    """Entropy (N,) of the members' mean probability of each class for each patch alone, (M, N, C), as a share of log C.

    0: the patch is surely of one class; 1: it tells nothing.
    """
    mean = probabilities.mean(axis=0)  # (N, C)
    share: Float64 = -xlogy(mean, mean).sum(axis=1) / np.log(mean.shape[1])
    return np.clip(share, 0.0, 1.0)


def reference_distance(features: Tensor, reference: Tensor) -> Float32:
    """How far each patch lies from what training has seen, (N, D) and (R, D) -> (N,); 1 is usual for training's own.

    Mean distance to the ``NEAREST`` nearest of the reference, each feature in units of its standard deviation there,
    over the median of the same distance within the reference, where a patch is not its own neighbour. Sun et al.,
    "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, take the k-th nearest; a mean moves less
    with one odd neighbour. R must be larger than ``NEAREST``.
    """
    deviation, mean = torch.std_mean(reference, dim=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    known = (reference - mean) / scale  # (R, D)
    usual = torch.cat([_nearest(part, known, NEAREST + 1)[:, 1:] for part in known.split(_BLOCK)]).mean(1).quantile(0.5)
    found = torch.cat([_nearest((part - mean) / scale, known, NEAREST) for part in features.split(_BLOCK)]).mean(1)
    distance: Float32 = (found / usual.clamp_min(torch.finfo(found.dtype).tiny)).float().cpu().numpy()
    return distance


def _nearest(patches: Tensor, known: Tensor, count: int) -> Tensor:
    """The ``count`` smallest distances of each patch, ascending, (n, count)."""
    return torch.cdist(patches, known).topk(count, dim=1, largest=False).values
