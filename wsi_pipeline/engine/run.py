"""The engine's loop: skip current outputs, submit the other jobs, list failures."""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Self

from ..artifacts import remove_abandoned, write_text
from ..config import EngineConfig
from ..errors import WsiError
from ..types import SlideRow
from .claims import claim_path, is_stale, read, remove_stale_claims
from .clusters import connect
from .execute import RunContext
from .jobs import Failure, Job, NullObserver, Observer, Result
from .pools import InProcessPool, Pool, Workers

_POLL_S = 1.0  # between two checks of other runs' claims


class Engine:
    """Runs the jobs of one call of ``wsi``. A context manager: workers start at the first job and end with it."""

    def __init__(
        self, config: EngineConfig, out: Path, observer: Observer | None = None, earlier: Iterable[Failure] = ()
    ) -> None:
        """``out``: the run folder. ``earlier``: failures of stages that are not run again in this call."""
        self.config = config
        self._out = out
        self.failures = list(earlier)
        self._observer = observer or NullObserver()
        self._context = RunContext(out, uuid.uuid4().hex, config.claim_timeout_s, config.slide_timeout_s)
        self._workers: Workers | None = None
        self._folders: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._workers is not None:
            self._workers.close(at_once=kind is not None)
            self._workers = None
        _remove_abandoned_below(self._folders)
        remove_abandoned(self._out)  # the call's own files
        remove_stale_claims(self._out, self._context.run, self.config.claim_timeout_s)

    def run(self, stage: str, jobs: Sequence[Job], device: str = "cpu") -> None:
        """Do the jobs whose output is not current; outdated outputs of failed jobs are removed.

        Jobs that another run on this folder has claimed are left to it and waited for. ``device``: the stage's
        setting; unless it is ``cpu``, jobs that compute on a device go to workers with a GPU. Raises ``WsiError`` at
        the first job that fails because of something the user must fix. Failures of single slides are in
        ``failures``.
        """
        todo = [job for job in jobs if not job.current()]
        self._observer.started(stage, len(jobs), len(jobs) - len(todo))
        folders = {job.output.parent for job in todo}
        _remove_abandoned_below(folders)
        self._folders |= folders
        failed: dict[Path, Result] = {}
        try:
            gpu = device != "cpu" and any(job.on_device for job in todo)
            for job, result in self._results(stage, todo, gpu):
                if result.exit_code == 2:
                    raise WsiError(result.message)
                self._observer.advanced(stage, job, result)
                if result.error:
                    failed[job.output] = result
        finally:  # listed in the order of the jobs, whichever failed first
            for job in todo:
                if job.output in failed:
                    self._list(stage, job, failed[job.output])
        self._observer.finished()

    def unfailed(self, slides: Iterable[SlideRow]) -> list[SlideRow]:
        """The slides that have not failed so far."""
        failed = {f.slide_id for f in self.failures}
        return [slide for slide in slides if slide.slide_id not in failed]

    def ready(self, stage: str, slides: Iterable[SlideRow], needs: Callable[[str], Path], maker: str) -> list[SlideRow]:
        """The slides that have not failed so far and for which the file ``needs(slide_id)`` exists.

        The stage ``maker`` makes that file. A slide that has not failed and yet lacks it never went through ``maker``:
        it is listed as a failure of ``stage``.
        """
        kept = []
        for slide in self.unfailed(slides):
            path = needs(slide.slide_id)
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

    def _results(self, stage: str, jobs: Sequence[Job], gpu: bool) -> Iterator[tuple[Job, Result]]:
        """Submit and collect; last, wait for jobs that other runs have claimed, until they finish or release them."""
        if not jobs:
            return
        pool, waiting, claimed = self._pool(jobs), deque(jobs), list[Job]()
        reasons: set[str] = set()
        while waiting or claimed or pool.running():
            free = pool.capacity(gpu) - pool.running()
            if not pool.running() and free < 1:
                self._report_waiting(reasons, stage, "no worker has started yet")
            while waiting and free > 0:
                pool.submit(waiting.popleft(), gpu)
                free -= 1
            for job, result in pool.completed(_POLL_S):
                if result.held_by:
                    claimed.append(job)
                else:
                    yield job, result
            if waiting or not claimed:
                continue
            released = [job for job in claimed if self._released(job)]
            if released:
                claimed = [job for job in claimed if job not in released]
                waiting.extend(released)
            elif not pool.running():
                why = f"another run on this folder has claimed {_names(claimed)}; waiting for it"
                self._report_waiting(reasons, stage, why)
                time.sleep(_POLL_S)

    def _pool(self, jobs: Sequence[Job]) -> Pool:
        config = self.config
        limited = bool(config.slide_timeout_s) and any(job.slide for job in jobs)
        if not limited and (config.kind == "serial" or (config.kind == "local" and len(jobs) < 2)):
            return InProcessPool(self._context)
        if self._workers is None:
            self._workers = Workers(config, connect(config, self._out), self._context)
        return self._workers

    def _released(self, job: Job) -> bool:
        """Whether no other run has a claim on the job (any more)."""
        path = claim_path(self._out, job.output)
        found = read(path)
        return found is None or is_stale(path, found, self._context.run, self.config.claim_timeout_s)

    def _report_waiting(self, reasons: set[str], stage: str, why: str) -> None:
        """Notify the observer, once for each reason."""
        if why not in reasons:
            reasons.add(why)
            self._observer.waiting(stage, why)


def _names(jobs: Sequence[Job], most: int = 3) -> str:
    names = [job.name for job in jobs]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _remove_abandoned_below(folders: Set[Path]) -> None:
    """Remove what ended processes left half-written, at any depth."""
    for top in folders:
        if folders.isdisjoint(top.parents):
            for folder, names, _ in os.walk(top):
                if any(name.startswith(".writing-") for name in names):
                    remove_abandoned(Path(folder))
                names[:] = [n for n in names if not n.startswith(".writing-") and not n.endswith(".zarr")]
