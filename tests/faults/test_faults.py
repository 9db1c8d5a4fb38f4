"""Whatever is killed at whatever moment: the run folder stays valid, and the next run completes it, byte for byte.

``make test`` runs a short campaign, tile and embed; ``make faults`` the full one (WSI_FAULTS=full), with every stage.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from campaign import Campaign, Work, children, claimed, ended, tree

from wsi_pipeline.demo import draw_cohort

pytestmark = pytest.mark.slow

FULL = os.environ.get("WSI_FAULTS") == "full"
full = pytest.mark.skipif(not FULL, reason="the full campaign: make faults")
STAGES: tuple[str, ...] = () if FULL else ("tile", "embed")  # none named: the whole `wsi run`
KILLS = {"serial": 30, "local": 30} if FULL else {"serial": 3, "local": 2}
SLIDES = 24
STARTUP_S = 3  # of a run, about
LOCAL = ("engine.kind=local", "engine.workers=2")
SETTINGS = {
    "slides": "slides.csv",
    "out": "run",
    "tile": {"mpp": 1.0, "side_px": 64},
    "embed": {"encoder": "timm:test_efficientnet.r160_in1k", "pretrained": False},
    "train": {"folds": 2, "epochs": 2, "val_fraction": 0.34, "state_every_s": 0},
    "explain": {"methods": ["attention"]},
    "evaluate": {"bootstrap": 20},
    "view": {"top_patches": 2, "thumbnail_px": 100},
}


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines to print at the end."""
    lines: list[str] = []
    yield lines
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *lines, sep="\n")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small drawn slides and a config."""
    folder = tmp_path_factory.mktemp("faults")
    draw_cohort(folder, slides=SLIDES, patients=12, side_px=600, workers=1)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """The files and the work of an undisturbed run."""

    files: dict[str, str]
    work: Work


@pytest.fixture(scope="module")
def undisturbed(study: Path, figures: list[str]) -> Undisturbed:
    campaign, begun = Campaign(study, "undisturbed", STAGES), time.monotonic()
    work = campaign.finish()
    assert work.done["tile"] == work.done["embed"] == SLIDES
    figures.append(f"undisturbed: {work.done.total()} jobs, {time.monotonic() - begun:.0f} s")
    return Undisturbed(tree(campaign.folder), work)


@pytest.mark.parametrize(("kind", "workers"), [("serial", 1), ("local", 2)])
def test_a_run_that_is_killed_repeatedly_ends_with_the_same_bytes(
    study: Path, undisturbed: Undisturbed, figures: list[str], kind: str, workers: int
) -> None:
    campaign = Campaign(study, f"killed-{kind}", STAGES, LOCAL if kind == "local" else ())
    figures.append(str(campaign.kill_at_random(KILLS[kind], undisturbed.work, random.Random(kind), workers)))
    assert tree(campaign.folder) == undisturbed.files


def test_two_runs_at_once_do_each_slide_once(study: Path, undisturbed: Undisturbed) -> None:
    both = Campaign(study, "twice", STAGES)
    first, second = both.start(), both.start()
    assert ended(first).done + ended(second).done == undisturbed.work.done
    assert tree(both.folder) == undisturbed.files


@full
def test_jobs_claimed_by_a_run_that_died_are_done_by_the_other(
    study: Path, undisturbed: Undisturbed, figures: list[str]
) -> None:
    both = Campaign(study, "one-dies", STAGES)
    dies, lives = both.start(), both.start()
    time.sleep(STARTUP_S + sum(undisturbed.work.seconds.values()) / 2)
    os.killpg(dies.pid, signal.SIGKILL)
    dies.communicate()
    begun = time.monotonic()
    ended(lives)
    figures.append(f"two runs, one killed: the other ended {time.monotonic() - begun:.0f} s later")
    assert tree(both.folder) == undisturbed.files


@full
def test_a_worker_that_is_killed_costs_nothing(study: Path, undisturbed: Undisturbed, figures: list[str]) -> None:
    """Its slide is done by another worker; repeatedly, in every stage."""
    campaign = Campaign(study, "workers-killed", STAGES, (*LOCAL, "engine.retries=50"))
    process, dice, kills = campaign.start(), random.Random(5), 0
    while process.poll() is None:
        time.sleep(dice.uniform(0.5, 3))
        workers = [child for child in children(process) if "spawn_main" in command(child)]
        if workers:
            dice.choice(workers).kill()
            kills += 1
    ended(process)
    figures.append(f"workers killed under a run that went on: {kills}")
    assert kills > 3
    assert tree(campaign.folder) == undisturbed.files


@full
def test_a_run_over_that_of_other_settings_is_killed_and_ends_with_its_own_bytes(
    study: Path, undisturbed: Undisturbed, figures: list[str]
) -> None:
    """A replaced file is complete at any moment, the old or the new one."""
    other = ("tile.overlap=0.25", "train.epochs=3")
    fresh, over = Campaign(study, "other", STAGES, other), Campaign(study, "other-over-old", STAGES, other)
    fresh.finish()
    Campaign(study, over.out, STAGES).finish()
    figures.append(str(over.kill_at_random(15, undisturbed.work, random.Random(6), fresh=False)))
    assert tree(over.folder) == tree(fresh.folder)


@full
@pytest.mark.parametrize("workers", [1, 4])
def test_the_bytes_are_the_same_with_any_number_of_workers(study: Path, undisturbed: Undisturbed, workers: int) -> None:
    campaign = Campaign(study, f"workers-{workers}", STAGES, ("engine.kind=local", f"engine.workers={workers}"))
    campaign.finish()
    assert tree(campaign.folder) == undisturbed.files


@full
def test_the_bytes_are_the_same_on_a_cluster(study: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Two workers, with and without a nanny, of a scheduler that the run finds by its address."""
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file), "--no-dashboard"]
    dask = [[sys.executable, "-m", f"distributed.cli.dask_{part}", *where] for part in ("scheduler", "worker")]
    of_worker = ["--nthreads", "1", "--local-directory", str(tmp_path)]
    commands = [
        [*dask[0], "--port", "0", "--host", "127.0.0.1"],
        [*dask[1], *of_worker],
        [*dask[1], *of_worker, "--no-nanny"],
    ]
    parts = [subprocess.Popen(part, stderr=subprocess.DEVNULL, start_new_session=True) for part in commands]
    try:
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        campaign = Campaign(study, "cluster", STAGES, ("engine.kind=cluster", f"engine.address={address}"))
        campaign.finish()
    finally:
        for part in parts:
            os.killpg(part.pid, signal.SIGKILL)
            part.wait()
    assert tree(campaign.folder) == undisturbed.files


@full
@pytest.mark.parametrize("settings", [(), LOCAL], ids=["serial", "local"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_within_seconds_and_leaves_nothing_half_done(
    study: Path, undisturbed: Undisturbed, figures: list[str], settings: tuple[str, ...], number: signal.Signals
) -> None:
    dice, longest, stops = random.Random(f"{settings} {number}"), 0.0, 5
    campaign = Campaign(study, f"stopped-{number.name}-{len(settings)}", STAGES, settings)
    for _ in range(stops):
        process = campaign.start()
        time.sleep(STARTUP_S + dice.uniform(0, sum(undisturbed.work.seconds.values()) / 2))
        workers, begun = children(process), time.monotonic()
        if number == signal.SIGINT:  # a terminal sends it to all processes
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
        if "report.html" in stderr:
            break  # it had finished
        assert process.returncode == 130, stderr
        assert "stopped; finished work is kept" in stderr
        assert "Traceback" not in stderr
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
        longest = max(longest, time.monotonic() - begun)
        assert not list(campaign.folder.rglob(".writing-*"))
        assert claimed(campaign.folder) == []
    figures.append(f"{number.name}, {settings or 'serial'}: at most {longest:.1f} s")
    campaign.finish()
    assert tree(campaign.folder) == undisturbed.files


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
