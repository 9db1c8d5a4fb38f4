"""Claims: which process works on a job, where several runs on several hosts share a run folder. One small file a job.

A claim is created with ``O_EXCL``, so that only one process succeeds, on network disks too. Its holder touches it
while it works (the heartbeat); times are those of the file system, as the clocks of hosts differ. A claim is stale
when it was not touched for its timeout, when its holder is a process of this machine that has ended, or when the
holder noted in it that it ended itself. A stale claim is replaced under a short-lived lock, again a file that only
one process can create.

A claim only saves work. If a process is held up for longer than the timeout, a job may be done twice, with the same
bytes: every file appears complete, by a rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from ..artifacts import machine, storage_error

FOLDER = ".claims"  # in the run folder


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim, as stored in it."""

    run: str  # one call of ``wsi``, on however many hosts
    machine: str
    boot: str
    pid: int
    started: str  # of the process, in the machine's ticks: process ids are reused
    claim_timeout_s: float
    token: str

    @classmethod
    def this_process(cls, run: str, claim_timeout_s: float) -> Holder:
        """This process as the holder of a claim."""
        start = _start_ticks(os.getpid())
        return cls(run, machine(), _boot_id(), os.getpid(), start, claim_timeout_s, uuid.uuid4().hex)

    def has_ended(self) -> bool:
        """Whether the process has certainly ended; for one on another machine this cannot be known here."""
        if (self.machine, self.boot) != (machine(), _boot_id()):
            return False
        return not psutil.pid_exists(self.pid) or _start_ticks(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine}"


@dataclass(frozen=True)
class ClaimRecord:
    """A claim as it was read from the disk."""

    holder: Holder | None  # None: the file is incomplete
    trace: str  # where the holder's job hung, if its process ended itself
    touched: float
    identity: tuple[int, str]


class Claim:
    """A claim that this process holds; a thread touches it until it is released.

    ``previous``: the stale claim that it replaced, if any.
    """

    def __init__(self, path: Path, handle: int, claim_timeout_s: float, previous: ClaimRecord | None) -> None:
        self.handle, self.previous = handle, previous
        self._path, self._done = path, threading.Event()
        self._thread = threading.Thread(
            target=self._touch, args=(claim_timeout_s / 4,), name=f"claim {path.name}", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if os.fstat(self.handle).st_ino == self._path.stat().st_ino:  # else it was taken over
                self._path.unlink()
        os.close(self.handle)

    def _touch(self, every_s: float) -> None:
        while not self._done.wait(every_s):
            with contextlib.suppress(OSError):
                os.utime(self.handle)  # of the open file: never the claim of a process that took over


def claim_path(root: Path, output: Path) -> Path:
    """The path of the claim on ``output`` in the run folder ``root``."""
    return root / FOLDER / (output.relative_to(root) if output.is_relative_to(root) else output.name)


def acquire(path: Path, run: str, claim_timeout_s: float) -> Claim | Holder | None:
    """The claim; or its present holder, None where the holder cannot be read.

    A claim of the same ``run`` is stale: a run starts a job again only when it has lost the first process. Raises
    ``StorageError`` where the disk is full or not writable.
    """
    while True:
        handle = _create(path)
        if handle is not None:
            _write_holder(path, handle, Holder.this_process(run, claim_timeout_s))
            return Claim(path, handle, claim_timeout_s, None)
        found = read(path)
        if found is None:
            continue  # released just now
        if not is_stale(path, found, run, claim_timeout_s):
            return found.holder
        with _takeover_lock(path, found, claim_timeout_s) as unchanged:
            if unchanged:
                return _replace(path, found, Holder.this_process(run, claim_timeout_s))


def is_stale(path: Path, found: ClaimRecord, run: str, claim_timeout_s: float) -> bool:
    """Whether the claim may be taken over. ``claim_timeout_s``: for a claim whose own timeout cannot be read."""
    holder = found.holder
    if holder is not None and (holder.run == run or found.trace or holder.has_ended()):
        return True
    return _age(path, found) > (holder.claim_timeout_s if holder else claim_timeout_s)


def read(path: Path) -> ClaimRecord | None:
    """The claim at ``path``; None where there is none. The file is opened, as cached metadata may be older."""
    try:
        with path.open("rb") as file:
            text = file.read().decode(errors="replace")
            stat = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    first, _, trace = text.partition("\n")
    try:
        holder = Holder(**json.loads(first))
    except (ValueError, TypeError):
        holder = None
    return ClaimRecord(holder, trace, stat.st_mtime, (stat.st_ino, first))


def remove_stale_claims(root: Path, run: str, claim_timeout_s: float) -> None:
    """Remove the claims that killed runs left behind, and empty folders."""
    for folder, _, names in os.walk(root / FOLDER, topdown=False):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # a full disk is reported elsewhere
                found = read(path)
                if found is not None and is_stale(path, found, run, claim_timeout_s):
                    with _takeover_lock(path, found, claim_timeout_s) as unchanged:
                        if unchanged:
                            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _create(path: Path) -> int | None:
    """A new file, open; None where one exists."""
    with _storage_errors(path):
        while True:
            try:
                return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o644)
            except FileExistsError:
                return None
            except FileNotFoundError:  # a run removes empty folders when it ends
                with contextlib.suppress(FileNotFoundError):
                    path.parent.mkdir(parents=True, exist_ok=True)


def _write_holder(path: Path, handle: int, holder: Holder) -> None:
    try:
        with _storage_errors(path):
            os.write(handle, json.dumps(asdict(holder)).encode() + b"\n")
    except OSError:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Convert disk-full and permission errors to ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) or error from None


@contextlib.contextmanager
def _takeover_lock(path: Path, found: ClaimRecord, claim_timeout_s: float) -> Iterator[bool]:
    """Lock a claim that was found stale; yields whether it is still as it was found.

    Also yields False where another process has the lock.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _create(lock)
    if handle is None:
        left = read(lock)
        if left is not None and _age(lock, left) > claim_timeout_s:  # its holder was killed while it had the lock
            lock.unlink(missing_ok=True)
        time.sleep(0.01)
        yield False
        return
    try:
        now = read(path)
        yield now is not None and now.identity == found.identity
    finally:
        os.close(handle)
        lock.unlink(missing_ok=True)


def _replace(path: Path, found: ClaimRecord, holder: Holder) -> Claim:
    """A new claim in the place of a stale one; there is a claim at every moment."""
    beside = path.with_name(f".{holder.token}.new")
    handle = _create(beside)
    assert handle is not None
    _write_holder(beside, handle, holder)
    beside.replace(path)
    return Claim(path, handle, holder.claim_timeout_s, found)


def _age(path: Path, found: ClaimRecord) -> float:
    """Seconds since it was touched, by the clock of the file system: that of a new file beside it."""
    probe = path.with_name(f".{uuid.uuid4().hex}.now")
    handle = _create(probe)
    assert handle is not None
    try:
        os.utime(handle)
        return os.fstat(handle).st_mtime - found.touched
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where that is not known, or the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError):
        return ""
