"""The whole way on small drawn slides: it arrives, resumes, rebuilds what it must; bytes do not depend on workers."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from wsi_pipeline.cli import app
from wsi_pipeline.config import load_config
from wsi_pipeline.demo import draw_cohort
from wsi_pipeline.errors import WsiError
from wsi_pipeline.heatmap.ngff import read_heatmap
from wsi_pipeline.pipeline import STAGES, run_stages
from wsi_pipeline.project import open_project
from wsi_pipeline.store import read_bag, read_explanations

SETTINGS = {
    "slides": "slides.csv",
    "out": "run",
    "tile": {"mpp": 1.0, "side_px": 64},
    "embed": {"encoder": "timm:test_efficientnet.r160_in1k", "pretrained": False},
    "aggregate": {"models": ["abmil", {"name": "transmil", "options": {"hidden": 64, "landmarks": 16}}]},
    "train": {"folds": 2, "epochs": 3, "val_fraction": 0.34},
    "evaluate": {"bootstrap": 50},
    "view": {"top_patches": 2, "thumbnail_px": 200},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight drawn slides, a config, and a finished run."""
    folder = tmp_path_factory.mktemp("study")
    draw_cohort(folder, slides=8, patients=6, side_px=1500, workers=1)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    assert run(folder) == []
    return folder


def run(folder: Path, *overrides: str, stages: tuple[str, ...] = STAGES) -> list[object]:
    project = open_project(load_config(folder / "config.yaml", list(overrides)))
    return list(run_stages(project, stages))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """What a look at every file would notice: its inode and its time of change."""
    files = (p for p in (folder / "run").rglob("*") if p.is_file())
    return {p.relative_to(folder / "run").as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def digests(run_folder: Path, *stages: str) -> dict[str, str]:
    files = (p for stage in stages for p in sorted((run_folder / stage).rglob("*")) if p.is_file())
    return {p.relative_to(run_folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def changed_stages(folder: Path, act: Callable[[], object]) -> set[str]:
    before = state(folder)
    act()
    after = state(folder)
    return {name.split("/")[0] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_every_stage_leaves_what_it_promises(study: Path) -> None:
    folder = study / "run"
    ids = [line["slide_id"] for line in rows(study / "slides.csv")]
    for slide_id in ids:
        assert (folder / "tile" / f"{slide_id}.h5").exists()
        assert (folder / "tile" / "tissue" / f"{slide_id}.geojson").exists()
        assert (folder / "tile" / "quality" / f"{slide_id}.jpg").exists()
        assert (folder / "heatmap" / f"{slide_id}.ome.zarr").is_dir()
        assert (folder / "view" / f"{slide_id}.geojson").exists()
        bag = read_bag(folder / "embed" / f"{slide_id}.h5")
        assert bag.encoder == "timm:test_efficientnet.r160_in1k"
        assert bag.features.shape == (len(bag.grid), 256)
    predictions = rows(folder / "predict" / "predictions.csv")
    assert sorted({p["slide_id"] for p in predictions}) == sorted(ids)
    assert {p["model"] for p in predictions} == {"abmil", "transmil"}
    assert all(p["held_out"].lower() == "true" and p["members"] == "1" for p in predictions)
    assert (folder / "evaluate" / "report.json").exists()
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "failures.csv").read_text() == "slide_id,stage,error,message\n"


def test_a_second_run_touches_no_file(study: Path) -> None:
    assert changed_stages(study, lambda: run(study)) == set()


@pytest.mark.parametrize(
    ("override", "rebuilt"),
    [
        ("view.top_patches=1", {"view", "report.html"}),
        ("evaluate.bootstrap=60", {"evaluate", "view", "report.html"}),
        ("heatmap.cell_px0=8", {"heatmap", "view", "report.html"}),
        ("train.epochs=2", {"train", "predict", "explain", "heatmap", "evaluate", "view", "report.html"}),
    ],
)
def test_one_option_rebuilds_its_stage_and_what_follows(study: Path, override: str, rebuilt: set[str]) -> None:
    try:
        changed = changed_stages(study, lambda: run(study, override)) - {"config.yaml", ".made"}
        assert changed <= rebuilt
        assert override.split(".")[0] in changed
        untouched = set(STAGES) - rebuilt
        assert changed & untouched == set()
    finally:
        run(study)


def test_two_workers_give_the_bytes_of_one(study: Path) -> None:
    stages = ("tile", "embed", "train", "predict", "explain", "heatmap")
    overrides = ["out=run2", "engine.kind=local", "engine.workers=2"]
    assert run(study, *overrides, stages=stages) == []
    assert digests(study / "run2", *stages) == digests(study / "run", *stages)


def test_the_map_holds_the_patch_scores_at_the_patches_centres(study: Path) -> None:
    for path in (study / "run" / "heatmap").glob("*.ome.zarr"):
        pyramid = read_heatmap(path)
        assert {c.model for c in pyramid.channels} == {"abmil", "transmil"}
        for number, channel in enumerate(pyramid.channels):
            explain = study / "run" / "explain" / channel.model / channel.method / f"{pyramid.slide_id}.h5"
            (stored,) = read_explanations(explain)
            values = pyramid.read(number)
            column, row = (stored.grid.centre_px0 // pyramid.cell_px0).astype(int).T
            np.testing.assert_array_equal(values[row, column], stored.scores)
            assert np.isnan(values).any(), "off tissue there is no number"


def test_a_model_is_applied_to_new_slides_without_yaml(study: Path) -> None:
    slide = sorted((study / "slides").glob("*.tif"))[0]
    command = ["predict", "--model", str(study / "run" / "train" / "abmil"), "--slides", str(slide), "--out"]
    result = CliRunner().invoke(app, [*command, str(study / "applied")])
    assert result.exit_code == 0, result.output
    (prediction,) = rows(study / "applied" / "predict" / "predictions.csv")
    assert prediction["model"] == "abmil"
    assert prediction["members"] == "2"
    assert (study / "applied" / "report.html").exists()
    assert (study / "applied" / "heatmap" / f"{slide.stem}.ome.zarr").is_dir()


def test_a_model_for_another_encoder_is_refused(study: Path) -> None:
    """At the door of the run where the bags are there; the line names both encoders."""
    command = ["--set", "out=other", "--set", "embed.encoder=timm:resnet18"]
    command += ["--set", f"predict.model={study / 'run' / 'train' / 'abmil'}", "--only", "slide_01"]
    runner = CliRunner()
    for stage in ("tile", "embed"):
        assert runner.invoke(app, [stage, str(study / "config.yaml"), *command]).exit_code == 0
    refused = runner.invoke(app, ["predict", str(study / "config.yaml"), *command])
    assert isinstance(refused.exception, WsiError)
    assert refused.exception.exit_code == 2
    assert "test_efficientnet" in str(refused.exception)
    assert "resnet18" in str(refused.exception)
    assert not (study / "other" / "predict" / "predictions.csv").exists()
