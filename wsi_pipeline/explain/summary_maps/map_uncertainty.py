"""Uncertainty of each patch: disagreement of members, entropy of its own prediction, distance to the training data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from ...types import Float32, Float64

NEAREST = 5  # neighbours over which the distance is averaged
_BLOCK = 4096  # patches compared with the reference at a time


def spread(scores: Float64) -> Float64:
    """Sample standard deviation (N,) over M >= 2 members of the scores (M, N), in the method's unit."""
    deviation: Float64 = scores.std(axis=0, ddof=1)
    return deviation


def sign_agreement(scores: Float64) -> Float64:
    """Agreement of M members on the sign, (M, N) -> (N,): 1 if all agree, 0 if as many are positive as negative."""
    agreement: Float64 = np.abs(np.sign(scores).mean(axis=0))
    return agreement


def entropy(probabilities: Float64) -> Float64:
    """Entropy (N,) of the members' mean class probabilities for each single patch, (M, N, C), over log C.

    0: the patch certainly belongs to one class; 1: all classes are equally probable.
    """
    mean = probabilities.mean(axis=0)  # (N, C)
    fraction: Float64 = -xlogy(mean, mean).sum(axis=1) / np.log(mean.shape[1])
    return np.clip(fraction, 0.0, 1.0)


class Reference(NamedTuple):
    """Sample of training patches, scaled so that the median distance of its patches to their neighbours is 1."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    known: Tensor  # (R, D) after subtracting the mean and dividing by the scale


def reference_of(sample: Tensor) -> Reference:
    """Build the reference from a sample (R, D) of training patches; R is larger than ``NEAREST``.

    Each feature is divided by its standard deviation, and all by the median distance of the sample's patches to their
    neighbours (a patch is not its own neighbour).
    """
    deviation, mean = torch.std_mean(sample, dim=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    known = (sample - mean) / scale  # (R, D)
    usual = torch.cat([_nearest(part, known, NEAREST + 1)[:, 1:] for part in known.split(_BLOCK)]).mean(1).quantile(0.5)
    unit = torch.where(usual > 0, usual, torch.ones_like(usual))
    return Reference(mean, scale * unit, known / unit)


def reference_distance(features: Tensor, reference: Reference) -> Float32:
    """Distance (N,) of each patch (N, D) from the training patches; their own median is 1.

    Mean distance to the ``NEAREST`` nearest patches of the reference. Deviation: Sun et al., "Out-of-Distribution
    Detection with Deep Nearest Neighbors", ICML 2022, use the k-th nearest; the mean depends less on a single outlier.
    """
    parts = ((part - reference.mean) / reference.scale for part in features.split(_BLOCK))
    found = torch.cat([_nearest(part, reference.known, NEAREST) for part in parts]).mean(1)
    distance: Float32 = found.float().cpu().numpy()
    return distance


def _nearest(patches: Tensor, known: Tensor, count: int) -> Tensor:
    """The ``count`` smallest distances of each patch, ascending, (n, count)."""
    return torch.cdist(patches, known).topk(count, dim=1, largest=False).values
