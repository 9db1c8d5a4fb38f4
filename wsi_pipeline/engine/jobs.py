"""What a job is, and what comes of it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..artifacts import is_current, storage_error
from ..errors import WsiError


@dataclass(frozen=True)
class JobStats:
    """What a job made, where there is more to say than how much."""

    units: int
    worked_s: float  # that its device could have worked
    waited_s: float  # of these, that it had nothing to work on


@dataclass(frozen=True)
class Job:
    """One call whose result is one file (or folder). ``function`` returns how many units (patches…) it made."""

    name: str  # slide_id, or what the job is called in messages
    output: Path
    key: str
    function: Callable[..., int | JobStats]  # of a module, so that another process can import it
    arguments: tuple[Any, ...]
    slide: bool = True  # False: a fold or the cohort, which may take longer than a slide
    whole: Callable[[Path], bool] | None = None  # of a module: whether what stands beside the output is there too

    def current(self) -> bool:
        """Whether there is nothing to do. Raises ``ArtifactError`` for an output of another version's schema."""
        return is_current(self.output, self.key) and (self.whole is None or self.whole(self.output))


@dataclass(frozen=True)
class Failure:
    """One line of failures.csv."""

    slide_id: str
    stage: str
    error: str
    message: str


@dataclass(frozen=True)
class Result:
    """What came of one job, in a form that crosses a process border."""

    units: int = 0
    worked_s: float = 0.0  # see ``JobStats``
    waited_s: float = 0.0
    error: str = ""
    message: str = ""
    exit_code: int = 0  # of the error; 0: done
    trace: str = ""  # of an unforeseen error, or of where a job hung
    elsewhere: bool = False  # another run on this folder has done it
    held_by: str = ""  # another run on this folder has it in hand


class Observer(Protocol):
    """Who watches a stage: the command line draws progress bars, tests count."""

    def started(self, stage: str, total: int, current: int) -> None:
        """``total`` jobs, of which ``current`` are there already."""

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        """One job ended."""

    def waiting(self, stage: str, why: str) -> None:
        """Nothing can be done until something happens elsewhere; said once for each reason."""

    def finished(self) -> None:
        """The stage ended."""


class NullObserver:
    """An observer that shows nothing."""

    def started(self, stage: str, total: int, current: int) -> None: ...

    def advanced(self, stage: str, job: Job, result: Result) -> None: ...

    def waiting(self, stage: str, why: str) -> None: ...

    def finished(self) -> None: ...


def cores() -> int:
    """CPU cores that this process may use; inside a worker process, its share."""
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
        made = job.function(*job.arguments)
        return Result(**vars(made)) if isinstance(made, JobStats) else Result(units=made)
    except Exception as error:  # noqa: BLE001  (one bad slide never stops the rest)
        return failed(job, error)


def failed(job: Job, error: Exception) -> Result:
    """``error`` as a value: one line for what was foreseen; for what was not, its trace too."""
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
