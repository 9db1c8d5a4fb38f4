"""A job that another run has claimed is left to it; a claim of a run that died is taken over, by exactly one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from wsi_pipeline.artifacts import machine
from wsi_pipeline.engine import claims
from wsi_pipeline.engine.claims import Claim, Holder, acquire, claim_path, is_stale, read, remove_stale_claims


def path_in(folder: Path) -> Path:
    return claim_path(folder, folder / "tile" / "a.h5")


def left_by(path: Path, claim_timeout_s: float = 60, trace: str = "", **changes: Any) -> Path:
    """A claim that is not touched any more."""
    holder = replace(Holder.this_process("another run", claim_timeout_s), **changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)) + "\n" + trace)
    return path


def got(path: Path, run: str = "this run", claim_timeout_s: float = 60) -> bool:
    claim = acquire(path, run, claim_timeout_s)
    if not isinstance(claim, Claim):
        return False
    with claim:
        return True


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_claim_is_not_beside_the_results_and_is_removed_when_released(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    claim = acquire(path, "this run", 60)
    assert isinstance(claim, Claim)
    with claim:
        assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.h5")] == [".claims/tile/a.h5"]
        assert str(acquire(path, "another run", 60)) == f"process {os.getpid()} on {machine()}"
    assert not path.exists()
    remove_stale_claims(tmp_path, "this run", 60)
    assert list(tmp_path.iterdir()) == []


def test_of_many_simultaneous_requests_exactly_one_succeeds(tmp_path: Path) -> None:
    path, start = path_in(tmp_path), threading.Barrier(16)

    def ask(number: int) -> object:
        start.wait()
        return acquire(path, f"run {number}", 60)

    with ThreadPoolExecutor(16) as pool:
        asked = list(pool.map(ask, range(16)))
    (claim,) = (found for found in asked if isinstance(found, Claim))
    with claim:
        assert all(isinstance(found, Holder | Claim) or found is None for found in asked)


@pytest.mark.parametrize("turn", range(5))
def test_a_stale_claim_is_taken_over_by_exactly_one(tmp_path: Path, turn: int) -> None:
    path, start = left_by(path_in(tmp_path), pid=ended_process()), threading.Barrier(16)

    def ask(number: int) -> object:
        start.wait()
        return acquire(path, f"run {number}", 60)

    with ThreadPoolExecutor(16) as pool:
        asked = list(pool.map(ask, range(16)))
    (claim,) = (found for found in asked if isinstance(found, Claim))
    with claim:
        assert claim.previous is not None
    assert [p.name for p in path.parent.iterdir()] == []


@pytest.mark.parametrize(
    ("changes", "binds"),
    [
        ({}, True),
        ({"started": "1"}, False),  # another process has its id now
        ({"machine": "elsewhere", "pid": 1}, True),  # whose processes cannot be seen from here
        ({"boot": "before"}, True),
        ({"run": "this run"}, False),  # whose worker was lost
    ],
)
def test_a_claim_binds_only_while_its_holder_may_be_alive(tmp_path: Path, changes: dict[str, Any], binds: bool) -> None:
    assert got(left_by(path_in(tmp_path), **changes)) is not binds


def test_a_claim_of_an_ended_process_is_stale(tmp_path: Path) -> None:
    assert got(left_by(path_in(tmp_path), pid=ended_process()))


def test_a_process_that_hung_and_ended_itself_leaves_its_traceback(tmp_path: Path) -> None:
    claim = acquire(left_by(path_in(tmp_path), machine="elsewhere", trace="Timeout!\n"), "this run", 60)
    assert isinstance(claim, Claim)
    with claim:
        assert claim.previous is not None
        assert claim.previous.trace == "Timeout!\n"


def test_a_claim_without_a_heartbeat_expires(tmp_path: Path) -> None:
    path = left_by(path_in(tmp_path), machine="elsewhere", claim_timeout_s=0.5)
    assert not got(path)
    time.sleep(0.6)
    assert got(path)


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}\n'])
def test_an_incomplete_claim_expires_too(tmp_path: Path, text: str) -> None:
    path = path_in(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert acquire(path, "this run", 60) is None
    os.utime(path, (time.time() - 61,) * 2)
    assert got(path)


def test_time_is_that_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_by(path_in(tmp_path), machine="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not got(path)


def test_a_holder_that_works_longer_than_the_timeout_keeps_the_claim(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    claim = acquire(path, "another run", 0.4)
    assert isinstance(claim, Claim)
    with claim:
        time.sleep(1)
        found = read(path)
        assert found is not None
        assert found.holder is not None
        assert not is_stale(path, replace(found, holder=replace(found.holder, machine="elsewhere")), "this run", 0.4)


def test_a_holder_that_was_taken_over_leaves_the_new_claim_alone(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    first = acquire(path, "this run", 60)
    second = acquire(path, "this run", 60)
    assert isinstance(first, Claim)
    assert isinstance(second, Claim)
    with second:
        with first:
            pass
        assert path.exists()
    assert not path.exists()


def test_a_claim_that_is_fresh_again_is_kept(tmp_path: Path) -> None:
    """Two processes find the same claim stale; the slower one must not remove the claim of the faster one."""
    path = left_by(path_in(tmp_path), pid=ended_process())
    found = read(path)
    assert found is not None
    claim = acquire(path, "the faster run", 60)
    assert isinstance(claim, Claim)
    with claim:
        with claims._takeover_lock(path, found, 60) as unchanged:
            assert not unchanged
        assert isinstance(acquire(path, "the slower run", 60), Holder)


def test_a_process_killed_while_it_took_over_blocks_nobody(tmp_path: Path) -> None:
    path = left_by(path_in(tmp_path), pid=ended_process())
    lock = path.with_name(f".{path.name}.lock")
    lock.touch()
    os.utime(lock, (time.time() - 61,) * 2)
    assert got(path)
    assert [p.name for p in path.parent.iterdir()] == []


def test_only_stale_claims_are_removed(tmp_path: Path) -> None:
    gone = left_by(path_in(tmp_path), pid=ended_process())
    lives = left_by(claim_path(tmp_path, tmp_path / "embed" / "b.h5"))
    (gone.parent / ".0.now").touch()
    os.utime(gone.parent / ".0.now", (0, 0))
    remove_stale_claims(tmp_path, "this run", 60)
    assert [p for p in (tmp_path / ".claims").rglob("*") if p.is_file()] == [lives]
    assert not gone.parent.exists()


def test_a_folder_that_is_removed_at_the_wrong_moment_does_no_harm(tmp_path: Path) -> None:
    stop, path = threading.Event(), path_in(tmp_path)

    def remove_abandoned() -> None:
        while not stop.is_set():
            remove_stale_claims(tmp_path, "other", 60)

    def ask(count: int) -> bool:
        return all(got(path, run=f"run {n}") for n in range(count))

    sweeping: Callable[[], None] = remove_abandoned
    thread = threading.Thread(target=sweeping)
    thread.start()
    try:
        assert ask(200)
    finally:
        stop.set()
        thread.join()
