"""Who has a job in hand, where several runs on several hosts share a run folder: one small file a job.

A claim is created with ``O_EXCL``, which one process only can win, on network disks too. Its holder touches it while
it works; the time is that of the file system, as the clocks of hosts differ. It is void when it was not touched for
the lease, when its holder is a process of this machine that is gone, or when the holder says that it ended itself.
A void claim is replaced by who holds a lock for that moment, again a file that one process only can create.

A claim only saves work. If a process is held up for longer than its lease, a job may be done twice: with the same
bytes, as every file appears whole by a rename.
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
    """What a claim says of who holds it."""

    run: str  # one call of ``wsi``, on however many hosts
    machine: str
    boot: str
    pid: int
    started: str  # of the process, in the machine's own count: ids are used again
    claim_timeout_s: float
    token: str

    @classmethod
    def me(cls, run: str, claim_timeout_s: float) -> Holder:
        """This process."""
        return cls(run, machine(), _boot(), os.getpid(), _started(os.getpid()), claim_timeout_s, uuid.uuid4().hex)

    def gone(self) -> bool:
        """Whether it surely lives no more: of a process on another machine, nobody here can tell."""
        if (self.machine, self.boot) != (machine(), _boot()):
            return False
        return not psutil.pid_exists(self.pid) or _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine}"


@dataclass(frozen=True)
class ClaimRecord:
    """A claim as it lies on the disk."""

    holder: Holder | None  # None: it was not written to its end
    trace: str  # where the holder's job hung, if it ended itself
    touched: float
    identity: tuple[int, str]


class Claim:
    """A claim that this process holds, and touches from a thread until it is released."""

    def __init__(self, path: Path, handle: int, claim_timeout_s: float, before: ClaimRecord | None) -> None:
        self.handle, self.before = handle, before
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
                os.utime(self.handle)  # of the open file: never that of who may have taken over


def claim_path(root: Path, output: Path) -> Path:
    """Where the claim on ``output`` stands in the run folder ``root``."""
    return root / FOLDER / (output.relative_to(root) if output.is_relative_to(root) else output.name)


def acquire(path: Path, run: str, claim_timeout_s: float) -> Claim | Holder | None:
    """The claim; or who holds it, None where that one cannot be read.

    A claim of the same ``run`` is void: who asks for a job twice has lost the first process. Raises ``StorageError``
    where the disk is full or forbidden.
    """
    while True:
        handle = _create(path)
        if handle is not None:
            _sign(path, handle, Holder.me(run, claim_timeout_s))
            return Claim(path, handle, claim_timeout_s, None)
        found = read(path)
        if found is None:
            continue  # released just now
        if not is_stale(path, found, run, claim_timeout_s):
            return found.holder
        with _takeover_lock(path, found, claim_timeout_s) as void_still:
            if void_still:
                return _replace(path, found, Holder.me(run, claim_timeout_s))


def is_stale(path: Path, found: ClaimRecord, run: str, claim_timeout_s: float) -> bool:
    """Whether the claim binds nobody. ``claim_timeout_s``: of a claim that does not say its own."""
    holder = found.holder
    if holder is not None and (holder.run == run or found.trace or holder.gone()):
        return True
    return _age(path, found) > (holder.claim_timeout_s if holder else claim_timeout_s)


def read(path: Path) -> ClaimRecord | None:
    """The claim that lies there; None where there is none. Opened, as a disk's cache knows older times."""
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
    """Remove what runs that were killed left, and folders that are empty."""
    for folder, _, names in os.walk(root / FOLDER, topdown=False):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # a disk that is full is said elsewhere
                found = read(path)
                if found is not None and is_stale(path, found, run, claim_timeout_s):
                    with _takeover_lock(path, found, claim_timeout_s) as void_still:
                        if void_still:
                            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _create(path: Path) -> int | None:
    """A new file, open; None where there is one."""
    with _storage(path):
        while True:
            try:
                return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o644)
            except FileExistsError:
                return None
            except FileNotFoundError:  # a run that ends removes empty folders
                with contextlib.suppress(FileNotFoundError):
                    path.parent.mkdir(parents=True, exist_ok=True)


def _sign(path: Path, handle: int, holder: Holder) -> None:
    try:
        with _storage(path):
            os.write(handle, json.dumps(asdict(holder)).encode() + b"\n")
    except OSError:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    """What the disk is to blame for becomes a ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) or error from None


@contextlib.contextmanager
def _takeover_lock(path: Path, found: ClaimRecord, claim_timeout_s: float) -> Iterator[bool]:
    """A lock, for a moment, on a claim that was found void; whether it still lies there as it was found.

    False, too, where another process has the lock.
    """
    lock = path.with_name(f".{path.name}.void")
    handle = _create(lock)
    if handle is None:
        left = read(lock)
        if left is not None and _age(lock, left) > claim_timeout_s:  # its holder was killed in that moment
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


def _replace(path: Path, found: ClaimRecord, me: Holder) -> Claim:
    """A new claim in the place of a void one, with no moment between in which there is none."""
    beside = path.with_name(f".{me.token}.new")
    handle = _create(beside)
    assert handle is not None
    _sign(beside, handle, me)
    beside.replace(path)
    return Claim(path, handle, me.claim_timeout_s, found)


def _age(path: Path, found: ClaimRecord) -> float:
    """Seconds since it was touched, by the clock of the disk: a file that is made beside it tells the time."""
    probe = path.with_name(f".{uuid.uuid4().hex}.now")
    handle = _create(probe)
    assert handle is not None
    try:
        os.utime(handle)
        return os.fstat(handle).st_mtime - found.touched
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where the system does not say, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError):
        return ""
