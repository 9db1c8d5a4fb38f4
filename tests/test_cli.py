"""Bad input gives one clear line and the right exit code; help names every command."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.cli.tables import plugin_facts, registry
from wsi_pipeline.demo import draw_slide
from wsi_pipeline.demo.slides import write_pyramid
from wsi_pipeline.pipeline import STAGES
from wsi_pipeline.registry import Entry


def wsi(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "wsi_pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("wsi: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    return lines[0]


def config(folder: Path, manifest: str, extra: str = "") -> Path:
    (folder / "slides.csv").write_text(manifest, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(f"slides: slides.csv\nout: run\n{extra}", encoding="utf-8")
    return path


def failures(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "run" / "failures.csv").open(newline="") as file:
        return {line["slide_id"]: line for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "good.tif"
    draw_slide(path, side_px=1500, seed=3, tumour=True)
    return path


def test_help_names_every_stage() -> None:
    text = wsi("--help").stdout
    for verb in (*STAGES, "run", "demo", "list", "info", "doctor", "config"):
        assert verb in text
    assert "--set" in wsi("tile", "--help").stdout


def test_help_of_explain_states_what_is_explained_for_each_task() -> None:
    text = " ".join(wsi("explain", "--help").stdout.split())
    for target in (
        "classification: the class's logit less the mean of the other classes' logits; of two classes, the log odds",
        "multilabel: the label's own logit, its log odds",
        "regression: the predicted value",
        "survival: the log hazard (risk)",
    ):
        assert target in text


def test_bad_slides_of_each_kind_are_listed_and_the_good_one_is_done(tmp_path: Path, slide: Path) -> None:
    data = slide.read_bytes()
    (tmp_path / "zero.svs").write_bytes(b"")
    (tmp_path / "text.svs").write_text("this is not a slide\n" * 50)
    (tmp_path / "truncated.tif").write_bytes(data[: len(data) // 2])
    draw_slide(tmp_path / "no_mpp.tif", side_px=600, seed=1, with_mpp=False)
    glass = np.clip(np.random.default_rng(0).normal(243, 2, (1200, 1200, 3)), 0, 255).astype(np.uint8)
    write_pyramid(tmp_path / "glass.tif", glass, 0.5)
    rows = ["missing.svs", "zero.svs", "text.svs", "truncated.tif", "no_mpp.tif", "glass.tif", str(slide)]
    done = wsi("tile", config(tmp_path, "path\n" + "\n".join(rows) + "\n"))
    assert done.returncode == 1, done.stderr
    listed = failures(tmp_path)
    assert set(listed) == {"missing", "zero", "text", "truncated", "no_mpp", "glass"}
    expected = {
        "missing": ("SlideError", "does not exist"),
        "zero": ("SlideError", "empty"),
        "text": ("SlideError", "text"),
        "truncated": ("SlideError", "truncated.tif"),
        "no_mpp": ("SlideError", "mpp"),
        "glass": ("EmptySlideError", "tissue"),
    }
    for slide_id, (error, word) in expected.items():
        assert listed[slide_id]["error"] == error, listed[slide_id]
        assert word in listed[slide_id]["message"]
        assert "\n" not in listed[slide_id]["message"]
        assert not listed[slide_id]["message"].startswith("unforeseen")
    assert (tmp_path / "run" / "tile" / "good.h5").exists()
    assert "6 of 7 slides failed" in done.stderr


def test_a_missing_resolution_can_be_given(tmp_path: Path) -> None:
    draw_slide(tmp_path / "no_mpp.tif", side_px=1500, seed=1, with_mpp=False)
    assert "--set read.mpp=" in error_line(wsi("info", tmp_path / "no_mpp.tif"))
    assert wsi("info", tmp_path / "no_mpp.tif", "--mpp", 0.5).returncode == 0
    path = config(tmp_path, "path,mpp\nno_mpp.tif,0.5\n")
    assert wsi("tile", path).returncode == 0
    assert wsi("tile", config(tmp_path, "path\nno_mpp.tif\n"), "--set", "read.mpp=0.5").returncode == 0


def test_a_slide_that_is_repaired_leaves_the_list(tmp_path: Path, slide: Path) -> None:
    path = config(tmp_path, "path\na.tif\n")
    assert wsi("tile", path).returncode == 1
    (tmp_path / "a.tif").write_bytes(slide.read_bytes())
    assert wsi("tile", path).returncode == 0
    assert failures(tmp_path) == {}


@pytest.mark.parametrize(
    ("manifest", "extra", "arguments", "message"),
    [
        ("slide_id\na\n", "", ["run"], "no 'path' column"),
        ("slide_id,path\na,1.svs\na,2.svs\n", "", ["run"], "'a' appears twice"),
        ("path\na.svs\n", "tile: {mppp: 1}\n", ["run"], "unknown key 'tile.mppp'"),
        ("path\na.svs\n", "embed: {encoder: rasnet50}\n", ["run"], "did you mean 'resnet50'"),
        ("path\na.svs\n", "aggregate: {models: [abmill]}\n", ["run"], "did you mean 'abmil'"),
        ("path\na.svs\n", "explain: {methods: [atention]}\n", ["run"], "did you mean 'attention'"),
        ("path\na.svs\n", "evaluate: {froc: rollout}\n", ["run"], "is not among explain.methods; add it there"),
        ("path\na.svs\n", "tile: {detector: otsuu}\n", ["run"], "did you mean 'otsu'"),
        ("path\na.svs\n", "", ["tile", "--only", "b"], "--only b"),
        ("path\na.svs\n", "", ["train", "--set", "train.folds=1"], "train.folds = 1"),
    ],
)
def test_what_the_user_must_fix_is_one_line_and_exit_code_2(
    tmp_path: Path, manifest: str, extra: str, arguments: list[str], message: str
) -> None:
    path = config(tmp_path, manifest, extra)
    assert message in error_line(wsi(arguments[0], path, *arguments[1:]))


def test_a_config_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "cannot read the config" in error_line(wsi("run", tmp_path / "none.yaml"))


def test_predict_without_slides_or_model_names_what_to_give(tmp_path: Path) -> None:
    assert "--model DIR" in error_line(wsi("predict"))
    line = error_line(wsi("predict", "--model", tmp_path, "--slides", "x/*.svs", "--out", tmp_path / "out"))
    assert str(tmp_path) in line


def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(tmp_path: Path, slide: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        path = config(tmp_path, f"path\n{slide}\n")
        line = error_line(wsi("tile", path, "--set", f"out={small / 'run'}"))
        assert "No space left on device" in line
        assert list(small.rglob("*.h5")) == []
        assert list(small.rglob(".writing-*")) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("kind", ["encoders", "models", "explainers", "readers", "detectors"])
def test_list_shows_the_plug_ins(kind: str) -> None:
    done = wsi("list", kind)
    assert done.returncode == 0, done.stderr
    expected = {"encoders": "lite0", "models": "transmil", "explainers": "contribution", "readers": "openslide"}
    assert expected.get(kind, "otsu") in done.stdout


def test_list_shows_what_the_scores_of_an_explainer_are() -> None:
    entries = {entry.name: plugin_facts("explainers", entry) for entry in registry("explainers").entries()}
    assert entries["attention"]["unit"] == "attention"
    assert entries["contribution"]["signed"] is True
    assert entries["rollout"]["class_specific"] is False
    broken = Entry("broken", lambda: 1 / 0, {"paper": "–"})
    assert plugin_facts("explainers", broken)["cannot be built"] == "ZeroDivisionError: division by zero"
    assert plugin_facts("models", broken) == {"paper": "–"}


def test_info_shows_the_properties_of_a_slide(slide: Path) -> None:
    done = wsi("info", slide)
    assert done.returncode == 0, done.stderr
    for word in ("openslide", "generic-tiff", "0.5", "1,500 x 1,500", "level 3"):
        assert word in done.stdout


def test_a_plain_image_is_a_slide_when_its_resolution_is_given(tmp_path: Path) -> None:
    Image.fromarray(np.full((300, 400, 3), 128, np.uint8)).save(tmp_path / "a.png")
    assert "mpp" in error_line(wsi("info", tmp_path / "a.png"))
    assert "image" in wsi("info", tmp_path / "a.png", "--mpp", 0.5).stdout


def test_doctor_and_config_print_their_tables() -> None:
    done = wsi("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("torch", "disk here", "weights: lite0"):
        assert word in done.stdout
    table = wsi("config", "tile").stdout
    assert "tile.min_tissue" in table
    assert "embed.encoder" not in table
    assert "[attention, contribution" in wsi("config", "explain").stdout, "brackets are not markup"
