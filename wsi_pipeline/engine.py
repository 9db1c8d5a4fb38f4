"""Maps one function over slides (or folds): serial, in local processes, or on a Dask cluster.

A job that fails costs its slide and is listed; the rest are done. Only what a user must fix first (exit code 2)
stops the run. Where a job runs never changes what it gives. This is the only place that catches ``Exception``.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from .config import EngineConfig
from .errors import EngineError, WsiError
from .files import discard, is_current, storage_error, sweep, write_text
from .types import SlideRow

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Job:
    """One call whose result is one file (or folder). ``function`` returns how many units (patches…) it made."""

    name: str  # slide_id, or what the job is called in messages
    output: Path
    key: str
    function: Callable[..., int]  # of a module, so that another process can import it
    arguments: tuple[Any, ...]


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
    error: str = ""
    message: str = ""
    exit_code: int = 0  # of the error; 0: done
    trace: str = ""  # of an unforeseen error


class Observer(Protocol):
    """Who watches a stage: the command line draws progress bars, tests count."""

    def started(self, stage: str, total: int, current: int) -> None:
        """``total`` jobs, of which ``current`` are there already."""

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        """One job ended."""

    def finished(self) -> None:
        """The stage ended."""


class Silent:
    """An observer that shows nothing."""

    def started(self, stage: str, total: int, current: int) -> None: ...

    def advanced(self, stage: str, job: Job, result: Result) -> None: ...

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


class Engine:
    """Runs the jobs of one call of ``wsi``. A context manager: workers start at the first job and end with it."""

    def __init__(
        self, config: EngineConfig, out: Path, observer: Observer | None = None, earlier: Iterable[Failure] = ()
    ) -> None:
        """``out``: the run folder. ``earlier``: failures of stages that this call does not run again."""
        self.config = config
        self._out = out
        self.failures = list(earlier)
        self._observer = observer or Silent()
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            cluster = self._client.cluster
            self._client.close()
            if cluster is not None:
                cluster.close()
            self._client = None

    def run(self, stage: str, jobs: Sequence[Job]) -> None:
        """Do the jobs whose output is not current; the outputs of failed ones that are out of date are removed.

        Raises ``WsiError`` at the first job that the user must fix something for. Failures of single slides
        are in ``failures``.
        """
        todo = [job for job in jobs if not is_current(job.output, job.key)]
        self._observer.started(stage, len(jobs), len(jobs) - len(todo))
        for folder in {job.output.parent for job in todo if job.output.parent.is_dir()}:
            for place in (folder, *(p for p in folder.iterdir() if p.is_dir() and p.suffix != ".zarr")):
                sweep(place)
        for job, result in self._results(todo):
            if result.error:
                discard(job.output)
            if result.exit_code == 2:
                raise WsiError(result.message)
            self._observer.advanced(stage, job, result)
            if result.error:
                self._list(stage, job, result)
        self._observer.finished()

    def ready(self, stage: str, slides: Iterable[SlideRow], needs: Callable[[str], Path], maker: str) -> list[SlideRow]:
        """The slides that have not failed in this run and whose ``needs(slide_id)``, made by stage ``maker``, is there.

        One that neither failed nor has it was never through ``maker``: it is listed as this stage's failure.
        """
        failed = {f.slide_id for f in self.failures}
        kept = []
        for slide in slides:
            path = needs(slide.slide_id)
            if slide.slide_id in failed:
                continue
            if path.exists():
                kept.append(slide)
            else:
                message = f"{path} is not there; run `wsi {maker}` first"
                self.failures.append(Failure(slide.slide_id, stage, "ArtifactError", message))
        return kept

    def _list(self, stage: str, job: Job, result: Result) -> None:
        self.failures.append(Failure(job.name, stage, result.error, result.message))
        if result.trace:
            write_text(self._out / "failures" / f"{stage}-{job.name}.txt", result.trace)

    def _results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        if self.config.kind == "serial" or (self.config.kind == "local" and len(jobs) < 2):
            for job in jobs:
                yield job, attempt(job)
        elif jobs:
            yield from self._distributed(jobs)

    def _distributed(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        from distributed import KilledWorker, as_completed

        client = self._connect()
        futures = {client.submit(attempt, job, pure=False, retries=0): job for job in jobs}
        for future in as_completed(futures):
            job = futures.pop(future)
            error = future.exception()
            if error is None:
                yield job, future.result()
            elif isinstance(error, KilledWorker):
                yield (
                    job,
                    Result(error="WorkerLost", message="its worker died again and again (out of memory?)", exit_code=1),
                )
            else:
                raise EngineError(f"the workers were lost: {error}; start again, what is finished stays") from error

    def _connect(self) -> Client:
        if self._client is None:
            self._client = _local(self.config.workers) if self.config.kind == "local" else _remote(self.config.address)
        return self._client


def attempt(job: Job) -> Result:
    """Run one job here; every failure becomes a value."""
    try:
        return Result(units=job.function(*job.arguments))
    except WsiError as error:
        return Result(error=type(error).__name__, message=_one_line(error), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001  (the one place: one bad slide never stops the rest)
        full = storage_error(error, job.output) if isinstance(error, OSError) else None
        if full is not None:
            return Result(error=type(full).__name__, message=_one_line(full), exit_code=full.exit_code)
        message = f"unforeseen: {_one_line(error) or type(error).__name__}"
        return Result(error=type(error).__name__, message=message, exit_code=1, trace=traceback.format_exc())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _local(workers: int) -> Client:
    import dask
    from distributed import Client, LocalCluster

    count = workers or max(1, cores() // 2)
    share = str(max(1, cores() // count))
    # Workers are fresh interpreters; each is told its share of the cores, and nothing listens beyond this machine.
    environment = {"WSI_WORKER_CORES": share, "OMP_NUM_THREADS": share}
    dask.config.set({"distributed.nanny.pre-spawn-environ": environment, "distributed.worker.memory.terminate": False})
    cluster = LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # any free port; the default one may be another run's
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )
    return Client(cluster)


def _remote(address: str | None) -> Client:
    from distributed import Client

    if not address:
        raise EngineError(
            "engine.kind is cluster but engine.address is not given; --set engine.address=tcp://host:8786"
        )
    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Dask scheduler answers at {address}; start one with `dask scheduler` and workers"
        ) from error
