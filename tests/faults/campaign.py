"""Runs that are killed at random moments, and checks of the run folder afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

VICTIM = Path(__file__).with_name("victim.py")
Stamp = tuple[int, int, int]  # inode, time of change, size: differs when a file was written
_REWRITTEN = {"config.yaml", "failures.csv"}  # by every call, not by a job
_OWN_FOLDER = {"train", "evaluate"}  # a job there has a folder, elsewhere files named after it


@dataclass
class Ledger:
    """The counts of a campaign."""

    name: str
    kills: Counter[str] = field(default_factory=Counter)  # by the stage that was running
    redone: int = 0  # jobs that were running, and started again
    parents_only: int = 0
    longest_orphan_s: float = 0
    seconds: float = 0

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {count}" for stage, count in sorted(self.kills.items()))
        orphans = f"; {self.parents_only} of the parent only, workers gone in {self.longest_orphan_s:.1f} s"
        return (
            f"{self.name}: {self.kills.total()} kills ({stages}){orphans if self.parents_only else ''}; "
            f"{self.redone} jobs started again; {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Campaign:
    """One study, the settings of its runs, and a run folder."""

    study: Path
    out: str
    stages: Sequence[str]
    settings: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return self.study / self.out

    def start(self) -> subprocess.Popen[str]:
        """Start the run, in its own session, so that all its processes can be killed at once."""
        overrides = [f"out={self.out}", *self.settings]
        if self.stages:
            command = [str(VICTIM), str(self.study / "config.yaml"), ",".join(self.stages), *overrides]
        else:
            sets = [part for override in overrides for part in ("--set", override)]
            command = ["-m", "wsi_pipeline", "run", str(self.study / "config.yaml"), *sets]
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "200"},
        )

    def finish(self) -> Work:
        """Run to the end, undisturbed."""
        return ended(self.start())

    def kill_at_random(
        self, kills: int, work: Work, dice: random.Random, workers: int = 1, fresh: bool = True
    ) -> Ledger:
        """Start and kill the run repeatedly, then let it finish. ``work``: what each stage of a complete run takes.

        The kills are spread over all stages, at random moments. Checks after each kill that no more jobs were claimed
        than there are workers and, in a folder that was ``fresh``, that what was finished before is unchanged.
        """
        ledger, begun = Ledger(self.out), time.monotonic()
        stages = list(work.seconds)
        seen: dict[str, Stamp] = {}
        running: list[str] = []
        for number in range(kills):
            old, process = _claims(self.folder), self.start()
            stage = stages[number * len(stages) // kills]
            if dice.random() < 0.95:  # else perhaps before it has started a job
                _until_claimed(process, self.folder, old, stages[stages.index(stage) :])
            if not _lives_after(process, dice.uniform(0, 2 * work.seconds[stage] * len(stages) / kills)):
                ended(process)
                ledger.name += f" (finished after {number} kills)"
                break
            whole = workers == 1 or dice.random() < 0.7
            ledger.longest_orphan_s = max(ledger.longest_orphan_s, _kill(process, whole))
            ledger.parents_only += not whole
            found = stamps(self.folder)
            if fresh:
                check_untouched(seen, found, running)
            claims = _claims(self.folder)
            begun_now = sorted(name for name, _ in claims - old)
            assert len(begun_now) <= workers, begun_now
            ledger.kills[stage_of(begun_now[0]) if begun_now else "between jobs"] += 1
            ledger.redone += len(begun_now)
            seen, running = found, [name for name, _ in claims]  # and those that an earlier run left
        self.finish()
        if fresh:
            check_untouched(seen, stamps(self.folder), running)
        ledger.seconds = time.monotonic() - begun
        return ledger


@dataclass(frozen=True)
class Work:
    """The work of a run, according to its output."""

    done: Counter[str]  # jobs, by stage
    seconds: dict[str, float]  # of each stage with work to do


def ended(process: subprocess.Popen[str]) -> Work:
    """Wait for a run."""
    stderr = process.communicate(timeout=900)[1]
    assert process.returncode == 0, stderr
    lines = re.findall(r"^ *(\w+)  (\d+) done,.*? up to date(?: in ([0-9.]+) s)?", stderr, re.MULTILINE)
    return Work(
        Counter({stage: int(count) for stage, count, _ in lines}), {stage: float(s) for stage, _, s in lines if s}
    )


def stamps(folder: Path) -> dict[str, Stamp]:
    """Every file of the run folder that is not internal to the engine."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith((".claims", ".writing-")) for part in name.split("/")):
            stat = path.stat()
            found[name] = stat.st_ino, stat.st_mtime_ns, stat.st_size
    return found


def claimed(folder: Path) -> list[str]:
    """The outputs of the jobs that are claimed: those that run, or ran when the run was killed."""
    root = folder / ".claims"
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]


def stage_of(output: str) -> str:
    return output.split("/")[0] if "/" in output else "view"  # its report is in the run folder itself


def check_untouched(before: dict[str, Stamp], after: dict[str, Stamp], running: Sequence[str]) -> None:
    """Check that earlier files are unchanged, except those of the jobs that were running."""
    touched = {name for name, stamp in before.items() if after.get(name) != stamp} - _REWRITTEN
    strange = sorted(name for name in touched if not any(belongs(name, output) for output in running))
    assert not strange, f"{strange} changed; running was {running}"


def belongs(name: str, output: str) -> bool:
    """Whether a file is one that the job of ``output`` writes."""
    *folders, last = output.split("/")
    if folders and folders[0] in _OWN_FOLDER:
        return name.startswith("/".join(folders))
    return name.startswith(folders[0] if folders else "") and last.split(".")[0] in name


def tree(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file; checks that no file internal to the engine is left."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert not [name for name in files if "/." in f"/{name}" and "/.made/" not in f"/{name}" and ".zarr/" not in name]
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "config.yaml"
    }


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _until_claimed(
    process: subprocess.Popen[str], folder: Path, old: set[tuple[str, int]], stages: Sequence[str]
) -> None:
    """Wait until the run has claimed a job of one of ``stages``."""
    while process.poll() is None and not any(stage_of(name) in stages for name, _ in _claims(folder) - old):
        time.sleep(0.005)


def _claims(folder: Path) -> set[tuple[str, int]]:
    """Name and time of every claim."""
    try:
        return {(name, (folder / ".claims" / name).stat().st_ctime_ns) for name in claimed(folder)}
    except OSError:  # one was removed meanwhile
        return set()


def _lives_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait; returns whether the process is still running, and so can be killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill(process: subprocess.Popen[str], whole: bool) -> float:
    """SIGKILL all processes, or the first only; returns how long the others lived on. Fails if they do not end."""
    workers = children(process)
    begun = time.monotonic()
    if whole:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == [], "a worker outlives its run"
    return 0 if whole else time.monotonic() - begun
