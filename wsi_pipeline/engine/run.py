"""The loop: what is current is left alone, the rest is handed out, failures are listed."""

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

_TICK_S = 1.0  # between two looks at what others do


class Engine:
    """Runs the jobs of one call of ``wsi``. A context manager: workers start at the first job and end with it."""

    def __init__(
        self, config: EngineConfig, out: Path, observer: Observer | None = None, earlier: Iterable[Failure] = ()
    ) -> None:
        """``out``: the run folder. ``earlier``: failures of stages that this call does not run again."""
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
        _sweep(self._folders)
        remove_abandoned(self._out)  # the call's own files
        remove_stale_claims(self._out, self._context.run, self.config.claim_timeout_s)

    def run(self, stage: str, jobs: Sequence[Job], device: str = "cpu") -> None:
        """Do the jobs whose output is not current; the outputs of failed ones that are out of date are removed.

        What another run on this folder has in hand is left to it and waited for. ``device``: what the config says of
        a stage that computes on one; unless it is ``cpu``, its jobs go where a GPU is. Raises ``WsiError`` at the
        first job that the user must fix something for. Failures of single slides are in ``failures``.
        """
        todo = [job for job in jobs if not job.current()]
        self._observer.started(stage, len(jobs), len(jobs) - len(todo))
        folders = {job.output.parent for job in todo}
        _sweep(folders)
        self._folders |= folders
        failed: dict[Path, Result] = {}
        try:
            for job, result in self._results(stage, todo, device != "cpu"):
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

    def _results(self, stage: str, jobs: Sequence[Job], gpu: bool) -> Iterator[tuple[Job, Result]]:
        """Hand out, collect; last, look after what other runs have in hand, until they have done it or left it."""
        if not jobs:
            return
        pool, waiting, held = self._pool(jobs), deque(jobs), list[Job]()
        said: set[str] = set()
        while waiting or held or pool.running():
            room = pool.capacity(gpu) - pool.running()
            if not pool.running() and room < 1:
                self._say(said, stage, "no worker is there yet")
            while waiting and room > 0:
                pool.submit(waiting.popleft(), gpu)
                room -= 1
            for job, result in pool.completed(_TICK_S):
                if result.held_by:
                    held.append(job)
                else:
                    yield job, result
            if waiting or not held:
                continue
            free = [job for job in held if self._free(job)]
            if free:
                held = [job for job in held if job not in free]
                waiting.extend(free)
            elif not pool.running():
                self._say(said, stage, f"another run on this folder has {_names(held)} in hand; waiting for it")
                time.sleep(_TICK_S)

    def _pool(self, jobs: Sequence[Job]) -> Pool:
        config = self.config
        limited = bool(config.slide_timeout_s) and any(job.slide for job in jobs)
        if not limited and (config.kind == "serial" or (config.kind == "local" and len(jobs) < 2)):
            return InProcessPool(self._context)
        if self._workers is None:
            self._workers = Workers(config, connect(config, self._out), self._context)
        return self._workers

    def _free(self, job: Job) -> bool:
        """Whether no other run has the job in hand (any more)."""
        path = claim_path(self._out, job.output)
        found = read(path)
        return found is None or is_stale(path, found, self._context.run, self.config.claim_timeout_s)

    def _say(self, said: set[str], stage: str, why: str) -> None:
        if why not in said:
            said.add(why)
            self._observer.waiting(stage, why)


def _names(jobs: Sequence[Job], most: int = 3) -> str:
    names = [job.name for job in jobs]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _sweep(folders: Set[Path]) -> None:
    """What processes that are gone left half-written, however deep."""
    for top in folders:
        if folders.isdisjoint(top.parents):
            for folder, names, _ in os.walk(top):
                if any(name.startswith(".writing-") for name in names):
                    remove_abandoned(Path(folder))
                names[:] = [n for n in names if not n.startswith(".writing-") and not n.endswith(".zarr")]
