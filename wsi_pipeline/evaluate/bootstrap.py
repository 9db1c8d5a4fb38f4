"""95 % intervals by resampling patients, since the slides of one patient are not independent.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals. The resampled units are patients
(cluster bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..types import Float64, Int64

PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
    """A measure and the range of the central 95 % of its resamples. NaN where it is undefined."""

    value: float
    low: float
    high: float
    n: int  # resamples used; the others were degenerate (a class was missing)


def resamples(patients: Sequence[str], count: int, generator: np.random.Generator) -> Iterator[Int64]:
    """Draw bootstrap resamples of patients.

    Parameters
    ----------
    patients : n strings
        The patient of each row.
    count : int
        Number of resamples.
    generator : numpy.random.Generator

    Yields
    ------
    int array
        Row indices of one resample: as many patients as there are, drawn with replacement, each with all its rows.
        Patients are drawn from their sorted list, so the draw does not depend on the order of the rows.
    """
    names, patient_index = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rows_of = [np.flatnonzero(patient_index == i) for i in range(len(names))]
    for _ in range(count):
        drawn = generator.integers(0, len(names), len(names))
        yield np.concatenate([rows_of[i] for i in drawn])


def intervals(
    statistic: Callable[[Int64], Mapping[str, float]], patients: Sequence[str], count: int, seed: int
) -> dict[str, Interval]:
    """Measures with their intervals over patients.

    Parameters
    ----------
    statistic : callable
        Row indices -> name and value of each measure; the same names for all rows.
    patients : n strings
        The patient of each row.
    count : int
        Number of resamples.
    seed : int

    Returns
    -------
    dict of str to Interval
        The value is that on all rows. A resample in which a measure is NaN is not used for it. With fewer than two
        patients there is nothing to resample, and the interval is NaN.
    """
    whole, drawn = draws(statistic, patients, count, seed)
    return {name: interval(value, drawn[name]) for name, value in whole.items()}


def draws(
    statistic: Callable[[Int64], Mapping[str, float]], patients: Sequence[str], count: int, seed: int
) -> tuple[dict[str, float], dict[str, Float64]]:
    """Each measure on all rows, and on each resample (count,), NaN where it is undefined; see ``intervals``."""
    whole = dict(statistic(np.arange(len(patients))))
    drawn = {name: np.full(count, np.nan) for name in whole}
    if len(set(patients)) > 1:
        for i, rows in enumerate(resamples(patients, count, np.random.default_rng(seed))):
            for name, value in statistic(rows).items():
                drawn[name][i] = value
    return whole, drawn


def interval(value: float, drawn: Float64) -> Interval:
    """The percentile interval of a measure from its resamples (count,)."""
    valid = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(valid):
        return Interval(value, float("nan"), float("nan"), 0)
    low, high = np.percentile(valid, PERCENTILES)
    return Interval(value, float(low), float(high), len(valid))


def p_value(drawn: Float64) -> float:
    """Two-sided p-value of no difference, from the resamples (count,) of a difference.

    Twice the smaller fraction of resamples on one side of 0. One is added to both counts, so that no p-value is 0
    (Davison and Hinkley, 1997). NaN where no resample is defined.
    """
    valid = drawn[np.isfinite(drawn)]
    if not len(valid):
        return float("nan")
    fewer = min(np.count_nonzero(valid <= 0), np.count_nonzero(valid >= 0))
    return min(1.0, 2 * (1 + fewer) / (1 + len(valid)))
