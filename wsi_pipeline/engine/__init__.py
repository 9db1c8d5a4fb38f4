"""Runs jobs, one for each slide or fold: in this process, in local processes, or on a Dask cluster.

A job that fails costs its slide and is listed; the others are finished. Only what a user must fix first (exit code 2)
stops the run. A result depends neither on where its job runs nor on how many runs share a run folder: a job is done by
the process that holds its claim. This is the only package that catches ``Exception``.

``jobs``: what a job is, and its result. ``claims``: one file for each job that a process is working on. ``execute``: a
job under its claim and its time limit. ``pools``: where jobs run, here or on Dask; ``clusters``: how Dask is started;
``gpus``: how many there are. ``run``: the loop. ``stopping``: Ctrl-C.
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
