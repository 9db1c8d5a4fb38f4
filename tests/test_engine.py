"""One bad slide never stops the rest; finished work is not done again; where it runs changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsi_pipeline.config import EngineConfig
from wsi_pipeline.engine import Engine, Job, Result, Silent
from wsi_pipeline.errors import ConfigError, EngineError, SlideError, WsiError
from wsi_pipeline.files import Provenance, write_made, write_text
from wsi_pipeline.types import SlideRow


def good(path: Path, key: str) -> int:
    write_text(path, f"made by {key}")
    write_made(path, Provenance.of(key, "tile"))
    return 7


def bad_slide(path: Path, key: str) -> int:
    raise SlideError(f"{path.name} is truncated;\nget it again")


def defect(path: Path, key: str) -> int:
    raise ZeroDivisionError("oh")


def needs_user(path: Path, key: str) -> int:
    raise ConfigError("no such encoder")


def dies(path: Path, key: str) -> int:
    os._exit(1)


class Watch(Silent):
    def __init__(self) -> None:
        self.results: list[tuple[str, Result]] = []
        self.current = 0

    def started(self, stage: str, total: int, current: int) -> None:
        self.current += current

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        self.results.append((job.name, result))


def jobs(out: Path, key: str, **functions: object) -> list[Job]:
    made = []
    for name, function in functions.items():
        assert callable(function)
        path = out / "tile" / f"{name}.txt"
        made.append(Job(name, path, key, function, (path, key)))
    return made


@pytest.mark.parametrize("kind", ["serial", "local"])
def test_one_bad_slide_never_stops_the_rest(tmp_path: Path, kind: str) -> None:
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


def test_finished_work_is_not_done_again_and_other_keys_are(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k1", a=good))
    watch = Watch()
    with Engine(EngineConfig(), tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k1", a=good))
        assert (watch.current, watch.results) == (1, [])
        engine.run("tile", jobs(tmp_path, "k2", a=good))
    assert (tmp_path / "tile" / "a.txt").read_text() == "made by k2"


def test_an_output_of_other_settings_does_not_outlive_a_failure(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k1", a=good))
        engine.run("tile", jobs(tmp_path, "k2", a=bad_slide))
    assert not (tmp_path / "tile" / "a.txt").exists()


def test_what_the_user_must_fix_stops_the_run(tmp_path: Path) -> None:
    with Engine(EngineConfig(), tmp_path) as engine, pytest.raises(WsiError, match="no such encoder"):
        engine.run("embed", jobs(tmp_path, "k", a=needs_user, b=good))
    assert not (tmp_path / "tile" / "b.txt").exists()


def test_a_worker_that_dies_costs_its_slide_only(tmp_path: Path) -> None:
    config = EngineConfig(kind="local", workers=2)
    with Engine(config, tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good, b=dies, c=good))
    assert [f.slide_id for f in engine.failures] == ["b"]
    assert engine.failures[0].error == "WorkerLost"
    assert sorted(p.name for p in (tmp_path / "tile").glob("*.txt")) == ["a.txt", "c.txt"]


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


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    config = EngineConfig(kind="cluster", address="tcp://127.0.0.1:9")
    with Engine(config, tmp_path) as engine, pytest.raises(EngineError, match="no Dask scheduler answers"):
        engine.run("tile", jobs(tmp_path, "k", a=good))
