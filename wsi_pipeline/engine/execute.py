"""Executes one job, in whichever process: under its claim, which keeps other runs away, and its time limit."""

from __future__ import annotations

import contextlib
import faulthandler
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import discard, remove_partial
from .claims import Claim, acquire, claim_path
from .jobs import Job, Result, attempt, failed

_ONE_JOB = threading.Lock()  # a process does one job at a time: torch's seeds and threads are per process


@dataclass(frozen=True)
class RunContext:
    """Settings that all jobs of one call of ``wsi`` share."""

    root: Path  # the run folder
    run: str  # random identifier of this call
    claim_timeout_s: float
    timeout_s: float  # 0: none


def run_job(job: Job, context: RunContext) -> Result:
    """Do the job, unless another run has claimed or finished it. On failure an outdated output is removed.

    With a time limit, a job that does not end takes its process with it, whatever code it hangs in.
    """
    with _ONE_JOB:
        try:
            claim = acquire(claim_path(context.root, job.output), context.run, context.claim_timeout_s)
            if not isinstance(claim, Claim):
                return Result(held_by=str(claim or "another process"))
            with claim:
                return _already_resolved(job, context, claim) or _attempt(job, context, claim)
        except Exception as error:  # noqa: BLE001  (a full disk, a schema of another version)
            return failed(job, error)


def worker_lost_result(job: Job, context: RunContext, deaths: int) -> Result:
    """The result of a job whose worker died ``deaths`` times, which is too often."""
    try:
        claim = acquire(claim_path(context.root, job.output), context.run, context.claim_timeout_s)
        if not isinstance(claim, Claim):
            return Result(held_by=str(claim or "another process"))
        with claim:
            times = "" if deaths == 1 else f" {deaths} times"
            message = f"its worker process died{times} (out of memory?)"
            return _already_resolved(job, context, claim) or _without_output(job, _failure("WorkerLost", message))
    except Exception as error:  # noqa: BLE001
        return failed(job, error)


def _already_resolved(job: Job, context: RunContext, claim: Claim) -> Result | None:
    """The result where the job need not be done: it is finished by now, or it has hung in this call before."""
    if job.current():
        return Result(done_elsewhere=True)
    previous = claim.previous
    if previous is None:
        return None
    remove_partial(job.output)
    if previous.trace and previous.holder is not None and previous.holder.run == context.run:
        message = f"not done in {context.timeout_s:g} s (engine.slide_timeout_s)"
        return _without_output(job, _failure("Timeout", message, previous.trace))
    return None


def _attempt(job: Job, context: RunContext, claim: Claim) -> Result:
    with _time_limit(context.timeout_s if job.slide else 0, claim.handle):
        result = attempt(job)
    return _without_output(job, result) if result.error else result


def _without_output(job: Job, result: Result) -> Result:
    """A failed ``result``, after removing the outdated output; unless another run has finished the job."""
    if job.current():
        return Result(done_elsewhere=True)
    with contextlib.suppress(OSError):  # the failure may be the disk's
        discard(job.output)
    return result


def _failure(error: str, message: str, trace: str = "") -> Result:
    return Result(error=error, message=message, exit_code=1, trace=trace)


@contextlib.contextmanager
def _time_limit(seconds: float, handle: int) -> Iterator[None]:
    """After ``seconds`` inside, write the traceback of every thread to ``handle`` and end the process.

    A thread in C does this: it does not need the interpreter lock, which the job may never release.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=handle)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
