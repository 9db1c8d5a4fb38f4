"""Maps one function over slides (or folds): serial, in local processes, or on a Dask cluster.

A job that fails costs its slide and is listed; the rest are done. Only what a user must fix first (exit code 2)
stops the run. Where a job runs never changes what it gives, and how many runs share a run folder neither: a job is
done by who holds its claim. This is the only place that catches ``Exception``.

``jobs``: what a job is, and what comes of it. ``claims``: one file a job that is in hand. ``work``: a job under its
claim and its time limit. ``pools``: where jobs run, here or on Dask; ``clusters``: how Dask is started; ``gpus``: how
many there are. ``run``: the loop. ``stopping``: Ctrl-C.
"""

from .jobs import Failure, Job, JobStats, NullObserver, Observer, Result, attempt, cores
from .run import Engine
from .stopping import stoppable

__all__ = [
    "Engine",
    "Failure",
    "Job",
    "JobStats",
    "NullObserver",
    "Observer",
    "Result",
    "attempt",
    "cores",
    "stoppable",
]
