"""One bad slide never stops the others; finished work is not repeated; results do not depend on where a job runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from wsi_pipeline.artifacts import Provenance, atomic_path, machine, write_provenance, write_text
from wsi_pipeline.config import EngineConfig
from wsi_pipeline.engine import Engine, Job, NullObserver, Result
from wsi_pipeline.engine.claims import Claim, Holder, acquire, claim_path
from wsi_pipeline.errors import ConfigError, EngineError, SlideError, WsiError
from wsi_pipeline.types import SlideRow


def good(*, output: Path, provenance: Provenance) -> int:
    write_text(output, f"made by {provenance.key}")
    write_provenance(output, provenance)
    return 7


def bad_slide(*, output: Path, provenance: Provenance) -> int:
    raise SlideError(f"{output.name} is truncated;\nget it again")


def bad_later(*, output: Path, provenance: Provenance) -> int:
    time.sleep(1)
    return bad_slide(output=output, provenance=provenance)


def defect(*, output: Path, provenance: Provenance) -> int:
    raise ZeroDivisionError("oh")


def needs_user(*, output: Path, provenance: Provenance) -> int:
    raise ConfigError("no such encoder")


def dies(*, output: Path, provenance: Provenance) -> int:
    note(output)
    os._exit(1)


def dies_twice(*, output: Path, provenance: Provenance) -> int:
    if note(output) < 3:
        os._exit(1)
    return good(output=output, provenance=provenance)


def hangs(*, output: Path, provenance: Provenance) -> int:
    """In native code that never gives the interpreter back."""
    note(output)
    with atomic_path(output) as beside:
        beside.write_text("half")
        ctypes.PyDLL(None).pause()
    return 0


def slow(*, output: Path, provenance: Provenance) -> int:
    note(output)
    time.sleep(1.5)
    return good(output=output, provenance=provenance)


def good_but(*, output: Path, provenance: Provenance) -> int:
    good(output=output, provenance=provenance)
    raise SlideError("the other run was faster")


def note(path: Path) -> int:
    """Record an attempt at ``path``; returns the number of attempts so far."""
    tries = path.parent.parent / "tries" / path.name
    tries.parent.mkdir(exist_ok=True)
    with tries.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(tries.read_text().splitlines())


def tries(out: Path, name: str) -> list[str]:
    """The processes that tried a job."""
    return (out / "tries" / f"{name}.txt").read_text().splitlines()


class Watch(NullObserver):
    def __init__(self) -> None:
        self.results: list[tuple[str, Result]] = []
        self.current = 0
        self.reasons: list[str] = []

    def waiting(self, stage: str, why: str) -> None:
        self.reasons.append(why)

    def started(self, stage: str, total: int, current: int) -> None:
        self.current += current

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        self.results.append((job.name, result))


def jobs(out: Path, key: str, **functions: object) -> list[Job]:
    made = []
    for name, function in functions.items():
        assert callable(function)
        path = out / "tile" / f"{name}.txt"
        made.append(Job(name, path, Provenance.of(key, "tile"), function))
    return made


@pytest.mark.parametrize("kind", ["serial", "local"])
def test_one_bad_slide_never_stops_the_others(tmp_path: Path, kind: str) -> None:
    watch = Watch()
    config = EngineConfig.model_validate({"kind": kind, "workers": 2})
    with Engine(config, tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good, b=bad_slide, c=good, d=defect))
    assert [p.name for p in sorted((tmp_path / "tile").glob("*.txt"))] == ["a.txt", "c.txt"]
    failures = {f.slide_id: f for f in engine.failures}
    assert failures["b"].error == "SlideError"
    assert failures["b"].message == "b.txt is truncated; get it again"
    assert failures["d"].message == "unforeseen: oh"
    assert "ZeroDivisionError" in (tmp_path / "failures" / "tile-d.txt").read_text()
    assert sum(result.units for _, result in watch.results) == 14


def test_failures_are_listed_in_the_order_of_the_slides(tmp_path: Path) -> None:
    with Engine(EngineConfig(kind="local", workers=2), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=bad_later, b=bad_slide, c=good))
    assert [f.slide_id for f in engine.failures] == ["a", "b"]


def test_finished_work_is_not_repeated_and_other_keys_are(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k1", a=good))
    watch = Watch()
    with Engine(EngineConfig(), tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k1", a=good))
        assert (watch.current, watch.results) == (1, [])
        engine.run("tile", jobs(tmp_path, "k2", a=good))
    assert (tmp_path / "tile" / "a.txt").read_text() == "made by k2"


def test_an_output_of_other_settings_is_removed_on_failure(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k1", a=good))
        engine.run("tile", jobs(tmp_path, "k2", a=bad_slide))
    assert not (tmp_path / "tile" / "a.txt").exists()


def test_what_the_user_must_fix_stops_the_run(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine, pytest.raises(WsiError, match="no such encoder"):
        engine.run("embed", jobs(tmp_path, "k", a=needs_user, b=good))
    assert not (tmp_path / "tile" / "b.txt").exists()


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_slide_only(tmp_path: Path) -> None:
    config = EngineConfig(kind="local", workers=2)
    with Engine(config, tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good, b=dies, c=good))
    assert [f.slide_id for f in engine.failures] == ["b"]
    assert engine.failures[0].error == "WorkerLost"
    assert sorted(p.name for p in (tmp_path / "tile").glob("*.txt")) == ["a.txt", "c.txt"]


@pytest.mark.parametrize(("retries", "lost"), [(1, True), (2, False)])
@pytest.mark.slow
def test_a_slide_whose_worker_died_is_tried_again_as_often_as_configured(
    tmp_path: Path, retries: int, lost: bool
) -> None:
    config = EngineConfig(kind="local", workers=2, retries=retries)
    with Engine(config, tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good, b=dies_twice))
    assert [f.error for f in engine.failures] == ["WorkerLost"] * lost
    assert (tmp_path / "tile" / "b.txt").exists() is not lost
    assert len(set(tries(tmp_path, "b"))) == retries + 1, "each time in a new process"
    assert not (tmp_path / ".claims").exists()


def workers() -> list[psutil.Process]:
    """The worker processes of this one."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
def test_a_worker_that_dies_while_it_starts_is_started_again(tmp_path: Path) -> None:
    def kill() -> None:
        while not (tmp_path / "tries" / "a.txt").exists():
            time.sleep(0.01)
        (first,) = workers()
        first.kill()
        while not (others := [worker for worker in workers() if worker != first]):
            time.sleep(0.01)
        others[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with Engine(EngineConfig(kind="local", workers=1), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=slow, b=good))
    killer.join()
    assert engine.failures == []
    assert len(tries(tmp_path, "a")) == 2


@pytest.mark.slow
def test_workers_that_cannot_be_started_again_are_one_line(tmp_path: Path) -> None:
    class Sabotage(Watch):
        def advanced(self, stage: str, job: Job, result: Result) -> None:
            assert engine._workers is not None
            client: Any = engine._workers._client
            for nanny in client.cluster.workers.values():
                client.sync(nanny.close)

    with Engine(EngineConfig(kind="local", workers=1), tmp_path, Sabotage()) as engine:
        with pytest.raises(EngineError, match="cannot be started again"):
            engine.run("tile", jobs(tmp_path, "k", a=good, b=good, c=good))
    assert (tmp_path / "tile" / "a.txt").exists()


@pytest.mark.slow
def test_workers_that_die_while_they_start_for_too_long_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.engine.clusters.LOST_S", 1)
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.01):
            if (tmp_path / "tries" / "a.txt").exists():
                for worker in workers():
                    worker.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        with Engine(EngineConfig(kind="local", workers=1), tmp_path) as engine:
            with pytest.raises(EngineError, match="cannot be started again"):
                engine.run("tile", jobs(tmp_path, "k", a=slow, b=good))
    finally:
        over.set()
        killer.join()


@pytest.mark.parametrize(("kind", "retries"), [("serial", 2), ("local", 0)])
def test_a_slide_that_hangs_in_native_code_costs_its_time_and_no_more(tmp_path: Path, kind: str, retries: int) -> None:
    config = EngineConfig.model_validate({"kind": kind, "workers": 2, "slide_timeout_s": 1, "retries": retries})
    with Engine(config, tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good, b=hangs, c=good))
    (failure,) = engine.failures
    assert (failure.slide_id, failure.error) == ("b", "Timeout")
    assert failure.message == "not done in 1 s (engine.slide_timeout_s)"
    assert 'test_engine.py", line' in (tmp_path / "failures" / "tile-b.txt").read_text(), (
        "the traceback shows where it hung"
    )
    assert len(tries(tmp_path, "b")) == 1, "it would hang again"
    assert sorted(p.name for p in (tmp_path / "tile").glob("*.txt")) == ["a.txt", "c.txt"]
    assert list(tmp_path.rglob(".writing-*")) == []
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", b=good))
    assert engine.failures == [], "another run tries again"


def test_a_job_that_is_not_a_slide_has_no_time_limit(tmp_path: Path) -> None:
    config = EngineConfig(slide_timeout_s=0.5)
    with Engine(config, tmp_path) as engine:
        engine.run("train", [replace(job, slide=False) for job in jobs(tmp_path, "k", a=slow)])
    assert engine.failures == []


@contextmanager
def claimed(out: Path, name: str) -> Iterator[Path]:
    """Another run, which has claimed a job."""
    path = out / "tile" / f"{name}.txt"
    claim = acquire(claim_path(out, path), "another run", 60)
    assert isinstance(claim, Claim)
    with claim:
        yield path


@pytest.mark.parametrize("kind", ["serial", "local"])
def test_a_job_claimed_by_another_run_is_left_to_it(tmp_path: Path, kind: str) -> None:
    def other() -> None:
        with claimed(tmp_path, "a") as path:
            begun.set()
            assert rest.wait(60)
            good(output=path, provenance=Provenance.of("k", "tile"))

    class Rest(Watch):
        def advanced(self, stage: str, job: Job, result: Result) -> None:
            super().advanced(stage, job, result)
            if len(self.results) == 2:
                rest.set()

    begun, rest, watch = threading.Event(), threading.Event(), Rest()
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    config = EngineConfig.model_validate({"kind": kind, "workers": 2})
    with Engine(config, tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=dies, b=good, c=good))
    thread.join()
    assert [(name, result.done_elsewhere) for name, result in watch.results][-1] == ("a", True)
    assert {name for name, result in watch.results if not result.done_elsewhere} == {"b", "c"}
    assert engine.failures == []


def test_a_job_released_by_another_run_is_done(tmp_path: Path) -> None:
    watch = Watch()

    def other() -> None:
        with claimed(tmp_path, "a"):
            begun.set()
            while not watch.reasons:
                time.sleep(0.01)

    begun = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    with Engine(EngineConfig(), tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good))
    thread.join()
    assert watch.reasons == ["another run on this folder has claimed a; waiting for it"]
    assert watch.results == [("a", Result(units=7))]


def test_a_job_claimed_by_a_killed_run_is_done_at_once(tmp_path: Path) -> None:
    claim = claim_path(tmp_path, tmp_path / "tile" / "a.txt")
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps(asdict(replace(Holder.this_process("killed", 60), started="1"))) + "\n")
    half = tmp_path / "tile" / ".writing-0-1-elsewhere" / "a.txt"
    half.parent.mkdir(parents=True)
    half.touch()
    watch = Watch()
    with Engine(EngineConfig(), tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good))
    assert watch.results == [("a", Result(units=7))]
    assert watch.reasons == []
    assert not half.parent.exists()
    assert not (tmp_path / ".claims").exists()


def test_files_of_processes_killed_while_writing_are_removed_at_any_depth(tmp_path: Path) -> None:
    places = [tmp_path, tmp_path / "tile" / "quality" / ".made"]
    for place in places:
        (place / f".writing-0-{ended_process()}-{machine()}").mkdir(parents=True)
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good))
    assert list(tmp_path.rglob(".writing-*")) == []


def test_a_failure_keeps_the_output_of_a_run_that_succeeded(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good_but))
    assert engine.failures == []
    assert (tmp_path / "tile" / "a.txt").exists()


def test_a_slide_without_its_input_is_listed_once(tmp_path: Path) -> None:
    rows = [SlideRow(name, tmp_path) for name in ("a", "b", "c")]
    (tmp_path / "a.h5").touch()
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", b=bad_slide))
        ready = engine.ready("embed", rows, lambda slide_id: tmp_path / f"{slide_id}.h5", "tile")
    assert [r.slide_id for r in ready] == ["a"]
    assert [(f.slide_id, f.stage) for f in engine.failures] == [("b", "tile"), ("c", "embed")]
    assert "run `wsi tile` first" in engine.failures[1].message


def test_no_scheduler_is_one_line(tmp_path: Path) -> None:
    with (
        Engine(EngineConfig(kind="cluster"), tmp_path) as engine,
        pytest.raises(EngineError, match="address is not given"),
    ):
        engine.run("tile", jobs(tmp_path, "k", a=good))


def test_a_scheduler_elsewhere_does_the_same(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        config = EngineConfig(kind="cluster", address=cluster.scheduler_address)
        with Engine(config, tmp_path) as engine:
            engine.run("tile", jobs(tmp_path, "k", a=good, b=bad_slide))
    assert (tmp_path / "tile" / "a.txt").read_text() == "made by k"
    assert [f.slide_id for f in engine.failures] == ["b"]


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def started(*command: str) -> subprocess.Popen[str]:
    """A part of Dask, which sees the jobs of this file."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    whole = [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]]
    return subprocess.Popen(whole, text=True, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})


@pytest.mark.slow
def test_a_scheduler_that_goes_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = started("dask_scheduler", *where, "--port", "0", "--host", "127.0.0.1")
    worker = started("dask_worker", *where, "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path))
    try:
        while not file.exists():
            time.sleep(0.1)
        config = EngineConfig(kind="cluster", address=json.loads(file.read_text())["address"])

        def kill() -> None:
            while not (tmp_path / "tries" / "c.txt").exists():
                time.sleep(0.05)
            scheduler.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with Engine(config, tmp_path) as engine, pytest.raises(EngineError, match="scheduler was lost; start again"):
            engine.run("tile", jobs(tmp_path, "k", a=good, b=good, c=slow))
        killer.join()
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    watch = Watch()
    with Engine(EngineConfig(), tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good, b=good, c=good))
    assert watch.current == 2
    assert [name for name, _ in watch.results] == ["c"]


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    config = EngineConfig(kind="cluster", address="tcp://127.0.0.1:9")
    with Engine(config, tmp_path) as engine, pytest.raises(EngineError, match="no Dask scheduler answers"):
        engine.run("tile", jobs(tmp_path, "k", a=good))
