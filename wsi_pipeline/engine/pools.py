"""Where jobs run: in this process, or on Dask's workers. No more are handed out than can be begun at once.

So a worker that dies takes one job with it, and none that only stood in its line is blamed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from typing import TYPE_CHECKING, Any, Protocol

from ..config import EngineConfig
from ..errors import EngineError
from .clusters import GPU, disconnect, given_up
from .execute import RunContext, run_job, worker_lost_result
from .jobs import Job, Result, one_line

if TYPE_CHECKING:
    from distributed import Client, Future

Ended = list[tuple[Job, Result]]
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)  # a scheduler that goes leaves these


class Pool(Protocol):
    """What the engine's loop asks of a place where jobs run."""

    def capacity(self, gpu: bool) -> int:
        """How many jobs can be in hand at once, at present."""

    def running(self) -> int:
        """How many are."""

    def submit(self, job: Job, gpu: bool) -> None:
        """Begin a job, where there is a GPU if it is for one."""

    def completed(self, timeout_s: float) -> Ended:
        """The jobs that have ended since; waits for the first at most so long."""

    def close(self, at_once: bool) -> None:
        """No job comes any more. ``at_once``: nobody waits for those in hand either."""


class InProcessPool:
    """This process, one job after the other."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._ended: Ended = []

    def capacity(self, gpu: bool) -> int:  # noqa: ARG002
        return 1

    def running(self) -> int:
        return len(self._ended)

    def submit(self, job: Job, gpu: bool) -> None:  # noqa: ARG002
        self._ended.append((job, run_job(job, self._context)))

    def completed(self, timeout_s: float) -> Ended:  # noqa: ARG002
        ended, self._ended = self._ended, []
        return ended

    def close(self, at_once: bool) -> None: ...


class Workers:
    """Dask's workers, one job each."""

    def __init__(self, config: EngineConfig, client: Client, context: RunContext) -> None:
        self._config, self._client, self._context = config, client, context
        self._running: dict[object, tuple[Future[Result], Job]] = {}
        self._ended: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
        self._workers: list[dict[str, Any]] = []

    def capacity(self, gpu: bool) -> int:
        if self._config.kind != "cluster" and given_up(self._client):
            raise EngineError("the worker processes died and cannot be started again; what is finished stays")
        try:
            self._workers = list(self._client.scheduler_info()["workers"].values())
        except (OSError, ValueError, RuntimeError) as error:
            raise _scheduler_lost() from error
        return sum(GPU in worker["resources"] for worker in self._workers) if self._asks(gpu) else len(self._workers)

    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job, gpu: bool) -> None:
        resources = {GPU: 1} if self._asks(gpu) else None
        future = self._client.submit(run_job, job, self._context, pure=False, retries=0, resources=resources)
        self._running[future.key] = future, job
        future.add_done_callback(self._ended.put)

    def completed(self, timeout_s: float) -> Ended:
        ended: Ended = []
        try:
            ended += self._results(self._ended.get(timeout=timeout_s))
            while True:
                ended += self._results(self._ended.get_nowait())
        except queue.Empty:
            pass
        if self._client.status != "running":
            raise _scheduler_lost()
        return ended

    def close(self, at_once: bool) -> None:
        self._running.clear()
        disconnect(self._client, at_once)

    def _results(self, future: Future[Result]) -> Ended:
        """What came of a job; nothing where its worker died just after it, and it is asked for once more."""
        from distributed import KilledWorker

        _, job = self._running[future.key]
        if future.status == "pending":
            future.add_done_callback(self._ended.put)
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
        except Exception as error:  # not of the job, which gives its own as a value
            message = f"a worker cannot do {job.name}: {type(error).__name__}: {one_line(error)}"
            raise EngineError(message) from error

    def _asks(self, gpu: bool) -> bool:
        """Whether jobs go where a GPU is: they are for one, and the config or a worker says that there is one."""
        if not gpu or (self._config.kind == "cluster" and self._config.gpu is not None):
            return gpu and bool(self._config.gpu)
        return any(GPU in worker["resources"] for worker in self._workers)


def _scheduler_lost() -> EngineError:
    return EngineError("the Dask scheduler was lost; start again, what is finished stays")
