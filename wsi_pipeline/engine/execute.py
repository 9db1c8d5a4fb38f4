"""One job in whichever process: under its claim, which keeps other runs away, and under its time limit."""

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

_ONE = threading.Lock()  # a process does one job at a time: torch's seeds and threads are the process's


@dataclass(frozen=True)
class RunContext:
    """What all jobs of one call of ``wsi`` have in common."""

    root: Path  # the run folder
    run: str  # a random name of this call
    claim_timeout_s: float
    timeout_s: float  # 0: none


def run_job(job: Job, context: RunContext) -> Result:
    """Do the job, unless another run has it in hand or has done it. On failure an output that is out of date goes.

    With a time limit, a job that does not end takes its process with it, whatever code it hangs in.
    """
    with _ONE:
        try:
            claim = acquire(claim_path(context.root, job.output), context.run, context.claim_timeout_s)
            if not isinstance(claim, Claim):
                return Result(held_by=str(claim or "another process"))
            with claim:
                return _already_resolved(job, context, claim) or _done(job, context, claim)
        except Exception as error:  # noqa: BLE001  (a disk that is full, a schema of another version)
            return failed(job, error)


def worker_lost_result(job: Job, context: RunContext, deaths: int) -> Result:
    """What is to be said of a job whose worker died too often."""
    try:
        claim = acquire(claim_path(context.root, job.output), context.run, context.claim_timeout_s)
        if not isinstance(claim, Claim):
            return Result(held_by=str(claim or "another process"))
        with claim:
            times = "" if deaths == 1 else f" {deaths} times"
            message = f"its worker process died{times} (out of memory?)"
            return _already_resolved(job, context, claim) or _failed(job, _failure("WorkerLost", message))
    except Exception as error:  # noqa: BLE001
        return failed(job, error)


def _already_resolved(job: Job, context: RunContext, claim: Claim) -> Result | None:
    """What can be said without doing the job: that it is done by now, or that it has hung in this call before."""
    if job.current():
        return Result(elsewhere=True)
    before = claim.before
    if before is None:
        return None
    remove_partial(job.output)
    if before.trace and before.holder is not None and before.holder.run == context.run:
        message = f"not done in {context.timeout_s:g} s (engine.slide_timeout_s)"
        return _failed(job, _failure("Timeout", message, before.trace))
    return None


def _done(job: Job, context: RunContext, claim: Claim) -> Result:
    with _limit(context.timeout_s if job.slide else 0, claim.handle):
        result = attempt(job)
    return _failed(job, result) if result.error else result


def _failed(job: Job, result: Result) -> Result:
    if job.current():
        return Result(elsewhere=True)
    with contextlib.suppress(OSError):  # the disk is the failure
        discard(job.output)
    return result


def _failure(error: str, message: str, trace: str = "") -> Result:
    return Result(error=error, message=message, exit_code=1, trace=trace)


@contextlib.contextmanager
def _limit(seconds: float, handle: int) -> Iterator[None]:
    """After ``seconds`` inside, write where every thread is to ``handle`` and end the process.

    A thread in C does this: it needs no lock of the interpreter, which the job may never give back.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=handle)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
