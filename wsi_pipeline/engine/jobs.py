"""What a job is, and its result."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..artifacts import Provenance, is_current, storage_error
from ..errors import WsiError


@dataclass(frozen=True)
class JobStats:
    """What a job made, and how well its device was used."""

    units: int
    worked_s: float  # how long the device was available
    waited_s: float  # how long of that it waited for input


@dataclass(frozen=True)
class Job:
    """One call whose result is one file (or folder).

    The engine calls ``function(*arguments, output=output, provenance=provenance)``, in this process or in another;
    it returns the number of units (patches…) that it made. The function writes ``output`` together with
    ``provenance``, and both last: they mark the job as finished.
    """

    name: str  # slide_id, or what the job is called in messages
    output: Path
    provenance: Provenance
    function: Callable[..., int | JobStats]  # of a module, so that another process can import it
    arguments: tuple[Any, ...] = ()
    slide: bool = True  # False: a fold or the cohort, which has no time limit
    on_device: bool = True  # False: needs no accelerator, even in a stage that has a device
    complete: Callable[[Path], bool] | None = None  # of a module: whether the files beside ``output`` exist as well

    @property
    def key(self) -> str:
        """The content key that a current output carries."""
        return self.provenance.key

    def current(self) -> bool:
        """Whether there is nothing to do. Raises ``ArtifactError`` for an output of another version's schema."""
        return is_current(self.output, self.key) and (self.complete is None or self.complete(self.output))

    def call(self) -> int | JobStats:
        """Do the work."""
        return self.function(*self.arguments, output=self.output, provenance=self.provenance)


@dataclass(frozen=True)
class Failure:
    """One line of failures.csv."""

    slide_id: str
    stage: str
    error: str
    message: str


@dataclass(frozen=True)
class Result:
    """The result of one job; can be sent to another process."""

    units: int = 0
    worked_s: float = 0.0  # see ``JobStats``
    waited_s: float = 0.0
    error: str = ""
    message: str = ""
    exit_code: int = 0  # of the error; 0: done
    trace: str = ""  # traceback of an unforeseen error, or of a job that hung
    done_elsewhere: bool = False  # another run on this folder has done it
    held_by: str = ""  # the process of another run on this folder that has claimed it


class Observer(Protocol):
    """Watches a stage: the command line draws progress bars, tests count."""

    def started(self, stage: str, total: int, current: int) -> None:
        """A batch of ``total`` jobs begins, of which ``current`` need not be done."""

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        """One job ended."""

    def waiting(self, stage: str, why: str) -> None:
        """Nothing can be done until something happens elsewhere; called once for each reason."""

    def finished(self) -> None:
        """The batch ended."""


class NullObserver:
    """An observer that shows nothing."""

    def started(self, stage: str, total: int, current: int) -> None: ...

    def advanced(self, stage: str, job: Job, result: Result) -> None: ...

    def waiting(self, stage: str, why: str) -> None: ...

    def finished(self) -> None: ...


def cores() -> int:
    """Number of CPU cores that this process may use; in a worker process, its share."""
    share = os.environ.get("WSI_WORKER_CORES")
    return (
        int(share)
        if share
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def attempt(job: Job) -> Result:
    """Run one job here; every failure becomes a value."""
    try:
        made = job.call()
        return Result(**vars(made)) if isinstance(made, JobStats) else Result(units=made)
    except Exception as error:  # noqa: BLE001  (one bad slide never stops the rest)
        return failed(job, error)


def failed(job: Job, error: Exception) -> Result:
    """``error`` as a result: one line; with its traceback where it was not foreseen."""
    if isinstance(error, WsiError):
        return Result(error=type(error).__name__, message=one_line(error), exit_code=error.exit_code)
    full = storage_error(error, job.output) if isinstance(error, OSError) else None
    if full is not None:
        return Result(error=type(full).__name__, message=one_line(full), exit_code=full.exit_code)
    message = f"unforeseen: {one_line(error) or type(error).__name__}"
    trace = "".join(traceback.format_exception(error))
    return Result(error=type(error).__name__, message=message, exit_code=1, trace=trace)


def one_line(error: BaseException) -> str:
    """The message without line breaks."""
    return " ".join(str(error).split())
