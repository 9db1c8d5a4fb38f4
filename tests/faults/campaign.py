"""Runs that are killed at random moments, and what the run folder says of it afterwards."""

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
Stamp = tuple[int, int, int]  # inode, time of change, size: what a look at a file notices
_REWRITTEN = {"config.yaml", "failures.csv"}  # of the call, not of a job
_OWN_FOLDER = {"train", "evaluate"}  # a job there has a folder, elsewhere files that are named after it


@dataclass
class Ledger:
    """What a campaign counted."""

    name: str
    kills: Counter[str] = field(default_factory=Counter)  # by the stage that was in hand
    redone: int = 0  # jobs that were in hand, and begun anew
    parents_only: int = 0
    longest_orphan_s: float = 0
    seconds: float = 0

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {count}" for stage, count in sorted(self.kills.items()))
        orphans = f"; {self.parents_only} of the parent only, workers gone in {self.longest_orphan_s:.1f} s"
        return (
            f"{self.name}: {self.kills.total()} kills ({stages}){orphans if self.parents_only else ''}; "
            f"{self.redone} jobs begun again; {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Campaign:
    """One study, one way to run it, one run folder."""

    study: Path
    out: str
    stages: Sequence[str]
    settings: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return self.study / self.out

    def start(self) -> subprocess.Popen[str]:
        """The run, in a session of its own, so that all its processes can be killed at once."""
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
        """Run to the end undisturbed."""
        return ended(self.start())

    def kill_at_random(
        self, kills: int, work: Work, dice: random.Random, workers: int = 1, fresh: bool = True
    ) -> Ledger:
        """Begin and kill, again and again, then let it finish. ``work``: what each stage of a whole run takes.

        The kills fall into all stages, into each at random moments. Checks after each that no more was in hand than
        there are workers, and in a folder that was ``fresh`` that what was finished before the kill is as it was.
        """
        ledger, begun = Ledger(self.out), time.monotonic()
        stages = list(work.seconds)
        seen: dict[str, Stamp] = {}
        hand: list[str] = []
        for number in range(kills):
            old, process = _claims(self.folder), self.start()
            stage = stages[number * len(stages) // kills]
            if dice.random() < 0.95:  # else perhaps before it has begun
                _until_in_hand(process, self.folder, old, stages[stages.index(stage) :])
            if not _lives_after(process, dice.uniform(0, 2 * work.seconds[stage] * len(stages) / kills)):
                ended(process)
                ledger.name += f" (done after {number} kills)"
                break
            whole = workers == 1 or dice.random() < 0.7
            ledger.longest_orphan_s = max(ledger.longest_orphan_s, _kill(process, whole))
            ledger.parents_only += not whole
            found = stamps(self.folder)
            if fresh:
                check_untouched(seen, found, hand)
            claims = _claims(self.folder)
            begun_now = sorted(name for name, _ in claims - old)
            assert len(begun_now) <= workers, begun_now
            ledger.kills[stage_of(begun_now[0]) if begun_now else "between jobs"] += 1
            ledger.redone += len(begun_now)
            seen, hand = found, [name for name, _ in claims]  # with those of a run before that this one never came to
        self.finish()
        if fresh:
            check_untouched(seen, stamps(self.folder), hand)
        ledger.seconds = time.monotonic() - begun
        return ledger


@dataclass(frozen=True)
class Work:
    """What a run did, as its lines say."""

    done: Counter[str]  # jobs, by stage
    seconds: dict[str, float]  # of each stage that did something


def ended(process: subprocess.Popen[str]) -> Work:
    """Wait for a run."""
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 0, said
    lines = re.findall(r"^ *(\w+)  (\d+) done,.*? up to date(?: in ([0-9.]+) s)?", said, re.MULTILINE)
    return Work(
        Counter({stage: int(count) for stage, count, _ in lines}), {stage: float(s) for stage, _, s in lines if s}
    )


def stamps(folder: Path) -> dict[str, Stamp]:
    """Every file that anybody may look at."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith((".claims", ".writing-")) for part in name.split("/")):
            stat = path.stat()
            found[name] = stat.st_ino, stat.st_mtime_ns, stat.st_size
    return found


def in_hand(folder: Path) -> list[str]:
    """The outputs of the jobs that a run is at, or was when it was killed, by its claims."""
    root = folder / ".claims"
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]


def stage_of(output: str) -> str:
    return output.split("/")[0] if "/" in output else "view"  # its report stands in the run folder itself


def check_untouched(before: dict[str, Stamp], after: dict[str, Stamp], hand: Sequence[str]) -> None:
    """What was there is as it was, but for the files of the jobs in hand."""
    touched = {name for name, stamp in before.items() if after.get(name) != stamp} - _REWRITTEN
    strange = sorted(name for name in touched if not any(belongs(name, output) for output in hand))
    assert not strange, f"{strange} changed; in hand was {hand}"


def belongs(name: str, output: str) -> bool:
    """Whether a file is one that the job of ``output`` writes."""
    *folders, last = output.split("/")
    if folders and folders[0] in _OWN_FOLDER:
        return name.startswith("/".join(folders))
    return name.startswith(folders[0] if folders else "") and last.split(".")[0] in name


def tree(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file; nothing that only a run has to know is left."""
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


def _until_in_hand(
    process: subprocess.Popen[str], folder: Path, old: set[tuple[str, int]], stages: Sequence[str]
) -> None:
    """Until the run has a job of one of ``stages`` in hand."""
    while process.poll() is None and not any(stage_of(name) in stages for name, _ in _claims(folder) - old):
        time.sleep(0.005)


def _claims(folder: Path) -> set[tuple[str, int]]:
    """Name and time of what claims there are."""
    try:
        return {(name, (folder / ".claims" / name).stat().st_ctime_ns) for name in in_hand(folder)}
    except OSError:  # one went while it was looked at
        return set()


def _lives_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait; whether the process still lives, and so can be killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill(process: subprocess.Popen[str], whole: bool) -> float:
    """SIGKILL, of all processes or of the first only; how long the others lived on. Fails where they stay."""
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
