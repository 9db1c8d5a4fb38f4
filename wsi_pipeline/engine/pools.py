"""Where jobs run: in this process, or on Dask's workers. No more are submitted than can start at once.

So a worker that dies takes one job with it, and no queued job is blamed for its death.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
from typing import TYPE_CHECKING, Any, Protocol

from ..config import EngineConfig
from ..errors import EngineError
from .clusters import GPU, disconnect, given_up
from .execute import RunContext, run_job, worker_lost_result
from .jobs import Job, Result, one_line

if TYPE_CHECKING:
    from distributed import Client, Future

Completed = list[tuple[Job, Result]]
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)  # raised when the scheduler is gone


class Pool(Protocol):
    """A place where jobs run, as the engine's loop uses it."""

    def capacity(self, gpu: bool) -> int:
        """How many jobs can run at once, at present; ``gpu``: jobs that need a GPU, if there is any."""

    def running(self) -> int:
        """How many jobs run, or have ended and were not collected yet."""

    def submit(self, job: Job, gpu: bool) -> None:
        """Start a job; ``gpu``: on a worker that has a GPU, if there is any."""

    def completed(self, timeout_s: float) -> Completed:
        """The jobs that have ended since the last call; waits for the first at most ``timeout_s``."""

    def close(self, at_once: bool) -> None:
        """Shut down; with ``at_once``, do not wait for running jobs."""


class InProcessPool:
    """This process, one job after the other."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._completed: Completed = []

    def capacity(self, gpu: bool) -> int:  # noqa: ARG002
        return 1

    def running(self) -> int:
        return len(self._completed)

    def submit(self, job: Job, gpu: bool) -> None:  # noqa: ARG002
        self._completed.append((job, run_job(job, self._context)))

    def completed(self, timeout_s: float) -> Completed:  # noqa: ARG002
        completed, self._completed = self._completed, []
        return completed

    def close(self, at_once: bool) -> None: ...


class Workers:
    """Dask's workers, one job each."""

    def __init__(self, config: EngineConfig, client: Client, context: RunContext) -> None:
        self._config, self._client, self._context = config, client, context
        self._running: dict[object, tuple[Future[Result], Job]] = {}
        self._ended_futures: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
        self._workers: list[dict[str, Any]] = []

    def capacity(self, gpu: bool) -> int:
        if self._config.kind != "cluster" and given_up(self._client):
            raise EngineError("the worker processes died and cannot be started again; finished work is kept")
        try:
            self._workers = list(self._client.scheduler_info()["workers"].values())
        except (OSError, ValueError, RuntimeError) as error:
            raise _scheduler_lost() from error
        return sum(map(_has_gpu, self._workers)) if self._requests_gpu(gpu) else len(self._workers)

    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job, gpu: bool) -> None:
        resources = {GPU: 1} if self._requests_gpu(gpu) else None
        future = self._client.submit(run_job, job, self._context, pure=False, retries=0, resources=resources)
        self._running[future.key] = future, job
        future.add_done_callback(self._ended_futures.put)

    def completed(self, timeout_s: float) -> Completed:
        completed: Completed = []
        try:
            completed += self._results(self._ended_futures.get(timeout=timeout_s))
            while True:
                completed += self._results(self._ended_futures.get_nowait())
        except queue.Empty:
            pass
        if self._client.status != "running":
            raise _scheduler_lost()
        return completed

    def close(self, at_once: bool) -> None:
        self._running.clear()
        if at_once:  # connections that break now are expected
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
        disconnect(self._client, at_once)

    def _results(self, future: Future[Result]) -> Completed:
        """The job and its result; nothing where its worker died just after it, and Dask runs the job again."""
        from distributed import KilledWorker

        _, job = self._running[future.key]
        if future.status == "pending":
            future.add_done_callback(self._ended_futures.put)
            return []
        if future.status not in ("finished", "error"):
            raise _scheduler_lost()
        del self._running[future.key]
        try:
            return [(job, future.result())]
        except KilledWorker:
            return [(job, worker_lost_result(job, self._context, self._config.retries + 1))]
        except _CANCELLED as gone:
            raise _scheduler_lost() from gone
        except Exception as error:  # not the job's own, which come as a result
            message = f"a worker cannot do {job.name}: {type(error).__name__}: {one_line(error)}"
            raise EngineError(message) from error

    def _requests_gpu(self, gpu: bool) -> bool:
        """Whether jobs request the resource GPU: they need one, and the config or a worker declares one."""
        if not gpu or (self._config.kind == "cluster" and self._config.gpu is not None):
            return gpu and bool(self._config.gpu)
        return any(map(_has_gpu, self._workers))


def _has_gpu(worker: dict[str, Any]) -> bool:
    """``worker``: as Dask's scheduler describes it."""
    return GPU in worker["resources"]


def _scheduler_lost() -> EngineError:
    return EngineError("the Dask scheduler was lost; start again: finished work is kept")
