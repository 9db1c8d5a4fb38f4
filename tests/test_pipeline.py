"""The whole pipeline on small drawn slides: it completes, resumes, rebuilds what it must, the same with any workers."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from wsi_pipeline.cli.main import app
from wsi_pipeline.config import load_config
from wsi_pipeline.demo import draw_cohort
from wsi_pipeline.engine import Failure
from wsi_pipeline.errors import ArtifactError, ConfigError, WsiError
from wsi_pipeline.heatmap.ngff import read_heatmap
from wsi_pipeline.pipeline import APPLY, EXPLANATIONS, STAGES, TABLE, read_failures, run_stages
from wsi_pipeline.project import open_project
from wsi_pipeline.store import read_bag, read_explanations

pytestmark = pytest.mark.slow

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


def run(folder: Path, *overrides: str, stages: tuple[str, ...] = STAGES) -> list[Failure]:
    return run_stages(open_project(load_config(folder / "config.yaml", list(overrides))), stages)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: they differ when a file was written."""
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


def test_the_table_of_stages_is_in_order() -> None:
    """Every stage follows the one that makes its input; a lab that applies a model needs no stage of a cohort."""
    names = list(TABLE)
    for name, stage in TABLE.items():
        assert stage.name == name
        assert stage.needs is None or names.index(stage.needs.stage) < names.index(name)
    assert STAGES == ("tile", "embed", "train", "predict", "explain", "heatmap", "evaluate", "view")
    assert APPLY == ("tile", "embed", "predict", "explain", "heatmap", "view")
    assert {name for name in names if TABLE[name].scope == "cohort"} == {"train", "evaluate", EXPLANATIONS}


def test_every_stage_writes_its_files(study: Path) -> None:
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


def test_two_workers_give_the_same_bytes_as_one(study: Path) -> None:
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
            assert np.isnan(values).any(), "there is no value off the tissue"


def test_a_model_is_applied_to_new_slides_without_yaml(study: Path) -> None:
    slide = shutil.copy(sorted((study / "slides").glob("*.tif"))[0], study / "new_case.tif")
    command = ["predict", "--model", str(study / "run" / "train" / "abmil"), "--slides", str(slide), "--out"]
    result = CliRunner().invoke(app, [*command, str(study / "applied")])
    assert result.exit_code == 0, result.output
    (prediction,) = rows(study / "applied" / "predict" / "predictions.csv")
    assert prediction["model"] == "abmil"
    assert prediction["members"] == "2"
    assert (study / "applied" / "report.html").exists()
    assert (study / "applied" / "heatmap" / "new_case.ome.zarr").is_dir()


def test_a_model_for_another_encoder_is_refused(study: Path) -> None:
    """Before anything is predicted, where the bags exist; the message names both encoders."""
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


def test_a_manifest_without_labels_is_refused_before_any_slide_is_read(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("path\na.svs\nb.svs\n", encoding="utf-8")
    (tmp_path / "config.yaml").write_text("slides: slides.csv\nout: run\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no labelled slide"):
        run(tmp_path)
    assert not (tmp_path / "run" / "tile").exists()


def test_with_only_one_slide_is_processed_and_the_cohort_is_kept(study: Path) -> None:
    project = open_project(load_config(study / "config.yaml", ["view.top_patches=1"]), ["slide_02"])
    before = state(study)
    assert run_stages(project, STAGES) == []
    changed = {name for name, stamp in state(study).items() if before.get(name) != stamp}
    try:
        assert {name for name in changed if "slide_" in name} <= {
            "view/panels/slide_02.html",
            "view/panels/.made/slide_02.html.json",
        }
        assert len(rows(study / "run" / "predict" / "predictions.csv")) == 16
    finally:
        run(study)


def test_train_is_about_the_whole_cohort(study: Path) -> None:
    with pytest.raises(ConfigError, match="whole cohort"):
        run_stages(open_project(load_config(study / "config.yaml"), ["slide_02"]), ("train",))


def test_a_slide_that_breaks_later_leaves_the_predictions(study: Path, tmp_path: Path) -> None:
    """Results of an earlier, intact slide are not shown as those of the present one."""
    shutil.copytree(study / "slides", tmp_path / "slides")
    shutil.copytree(study / "run", tmp_path / "run")
    for name in ("slides.csv", "config.yaml", "annotations"):
        source = study / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    assert changed_stages(tmp_path, lambda: run(tmp_path)) <= {"config.yaml"}, "a run folder that moved is not current"
    (tmp_path / "slides" / "slide_03.tif").write_bytes(b"")
    (failure,) = run(tmp_path, "predict.model=run/train", stages=tuple(s for s in STAGES if s != "train"))
    assert (failure.slide_id, failure.stage) == ("slide_03", "tile")
    listed = {row["slide_id"] for row in rows(tmp_path / "run" / "predict" / "predictions.csv")}
    assert len(listed) == 7
    assert "slide_03" not in listed


def test_failures_of_later_stages_exclude_no_slide_of_this_one(study: Path) -> None:
    listed = study / "run" / "failures.csv"
    listed.write_text("slide_id,stage,error,message\nslide_01,view,SlideError,gone\n", encoding="utf-8")
    assert run(study, stages=("predict",)) == []
    assert len(rows(study / "run" / "predict" / "predictions.csv")) == 16
    run(study)


def test_a_list_of_failures_that_is_damaged_is_one_line(study: Path, tmp_path: Path) -> None:
    (tmp_path / "failures.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="is not a list of failures; delete it"):
        read_failures(tmp_path / "failures.csv")


def test_weights_that_are_damaged_are_trained_again(study: Path) -> None:
    weights = study / "run" / "train" / "abmil" / "seed0_fold0" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert run(study) == []
    assert weights.read_bytes() == whole


def test_a_map_with_a_level_missing_is_painted_again(study: Path) -> None:
    level = study / "run" / "heatmap" / "slide_01.ome.zarr" / "0"
    shutil.rmtree(level)
    assert run(study) == []
    assert level.is_dir()


def test_options_are_checked_before_the_first_slide(study: Path) -> None:
    with pytest.raises(ConfigError, match="model 'abmil' has no option 'gaetd'"):
        run(study, "aggregate.models=[{name: abmil, options: {gaetd: false}}]", "out=nowhere")
    assert not (study / "nowhere" / "tile").exists()
