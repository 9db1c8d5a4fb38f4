"""How far a map can be trusted, patch by patch: do the members agree, is the patch itself clear, was it ever seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from ...types import Float32, Float64

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


class Reference(NamedTuple):
    """What training has seen, in a unit of its own: there the usual distance of a patch to its neighbours is 1."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    known: Tensor  # (R, D) in that unit


def reference_of(sample: Tensor) -> Reference:
    """The reference that a sample (R, D) of training's patches is. R must be larger than ``NEAREST``.

    Each feature is taken in units of its standard deviation. Usual is the median over the sample, in which a patch is
    not its own neighbour.
    """
    deviation, mean = torch.std_mean(sample, dim=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    known = (sample - mean) / scale  # (R, D)
    usual = torch.cat([_nearest(part, known, NEAREST + 1)[:, 1:] for part in known.split(_BLOCK)]).mean(1).quantile(0.5)
    unit = torch.where(usual > 0, usual, torch.ones_like(usual))
    return Reference(mean, scale * unit, known / unit)


def reference_distance(features: Tensor, reference: Reference) -> Float32:
    """How far each patch (N, D) lies from what training has seen, (N,); 1 is usual for training's own.

    Mean distance to the ``NEAREST`` nearest of the reference. Sun et al., "Out-of-Distribution Detection with Deep
    Nearest Neighbors", ICML 2022, take the k-th nearest; a mean moves less with one odd neighbour.
    """
    parts = ((part - reference.mean) / reference.scale for part in features.split(_BLOCK))
    found = torch.cat([_nearest(part, reference.known, NEAREST) for part in parts]).mean(1)
    distance: Float32 = found.float().cpu().numpy()
    return distance


def _nearest(patches: Tensor, known: Tensor, count: int) -> Tensor:
    """The ``count`` smallest distances of each patch, ascending, (n, count)."""
    return torch.cdist(patches, known).topk(count, dim=1, largest=False).values
