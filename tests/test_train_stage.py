"""The training stage: it learns planted evidence, is reproducible to the byte, and repeats no finished work."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_data import MODEL, planted_project

from wsi_pipeline.aggregate.checkpoint import load_card, load_model
from wsi_pipeline.aggregate.inference import bag_output, probabilities
from wsi_pipeline.artifacts import read_key
from wsi_pipeline.config import build_config
from wsi_pipeline.csvtable import read_csv
from wsi_pipeline.engine import Engine, Failure, Job, Result
from wsi_pipeline.errors import ConfigError, WsiError
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project
from wsi_pipeline.store import read_bag
from wsi_pipeline.train import stage
from wsi_pipeline.train.data import FoldData
from wsi_pipeline.train.losses import macro_auroc
from wsi_pipeline.train.optimizer import lr_factor


class Watcher:
    """Records which jobs were run."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def started(self, stage: str, total: int, current: int) -> None: ...

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        self.done.append(job.name)

    def waiting(self, stage: str, why: str) -> None: ...

    def finished(self) -> None: ...


def train(project: Project) -> tuple[list[str], list[Failure]]:
    """Names of the jobs that were run, and the failures."""
    watcher = Watcher()
    with Engine(project.config.engine, project.config.out, watcher) as engine:
        run_stage("train", project, engine)
    return watcher.done, engine.failures


def changed(project: Project, *overrides: str) -> Project:
    """The same slides and run folder with another config."""
    config = build_config(project.config.model_dump(mode="json"), list(overrides), base=Path("/"), source="test")
    return Project(config, project.slides, project.cohort)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file below ``folder``."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


def auroc(scores: list[tuple[str, float]]) -> float:
    """Fraction of (tumour, normal) pairs in the right order, ties half, pair by pair."""
    wins = [
        1.0 if t > n else 0.5 if t == n else 0.0
        for label, t in scores
        for other, n in scores
        if (label, other) == ("tumour", "normal")
    ]
    return sum(wins) / len(wins)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Forty bags, two folds; s39 has no label and is not trained on."""
    project = planted_project(tmp_path_factory.mktemp("run"), 40)
    rows = (*project.slides[:-1], type(project.slides[0])("s39", Path("s39.svs"), "p39"))
    project = Project(project.config, rows, rows)
    assert train(project) == (["abmil_seed0_fold0", "abmil_seed0_fold1", "cohort"], [])
    return project


def predictions(project: Project) -> list[dict[str, str]]:
    header, rows = read_csv(project.folder.train / "predictions.csv")
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_held_out_slides_are_classified(trained: Project) -> None:
    test = [row for row in predictions(trained) if row["part"] == "test"]
    assert sorted(row["slide_id"] for row in test) == [f"s{i:02d}" for i in range(39)]
    assert auroc([(row["label"], float(row["prob_tumour"])) for row in test]) >= 0.95


def test_the_prediction_table_has_model_seed_fold_part_and_every_class(trained: Project) -> None:
    header, rows = read_csv(trained.folder.train / "predictions.csv")
    columns = "model seed fold slide_id patient_id label part prob_normal prob_tumour"
    assert header == columns.split()
    assert {tuple(row[:3]) for row in rows} == {("abmil", "0", "0"), ("abmil", "0", "1")}
    assert {row[6] for row in rows} == {"val", "test"}
    assert all(abs(float(row[7]) + float(row[8]) - 1) < 2e-6 for row in rows)


@pytest.mark.parametrize("fold", [0, 1])
def test_the_card_describes_the_model_and_the_patients_it_was_trained_on(trained: Project, fold: int) -> None:
    folder = trained.folder.fold("abmil", 0, fold)
    card = load_card(folder)
    assert (card.model, card.options, card.classes) == ("abmil", MODEL["options"], ("normal", "tumour"))
    assert (card.encoder, card.weights_digest, card.dim) == ("lite0", "d0", 32)
    assert (card.target_mpp, card.side_px) == (0.5, 224)
    own = [row for row in predictions(trained) if row["fold"] == str(fold)]
    tested = {row["patient_id"] for row in own if row["part"] == "test"}
    everyone = {slide.patient_id for slide in trained.slides if slide.label}
    assert set(card.trained["seen_patients"]) == everyone - tested
    assert set(card.trained["val_patients"]) == {row["patient_id"] for row in own if row["part"] == "val"}
    assert card.threshold is not None
    below = [float(row["prob_tumour"]) for row in own if (row["part"], row["label"]) == ("val", "normal")]
    above = [float(row["prob_tumour"]) for row in own if (row["part"], row["label"]) == ("val", "tumour")]
    assert max(below) < card.threshold < min(above)


@pytest.mark.parametrize("fold", [0, 1])
def test_the_saved_weights_are_those_of_the_best_epoch(trained: Project, fold: int) -> None:
    folder = trained.folder.fold("abmil", 0, fold)
    header, lines = read_csv(folder / "log.csv")
    assert header == ["epoch", "train_loss", "val_loss", "val_auroc", "lr"]
    assert [line[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
    assert lines[0][4] == "0.0025"  # half the rate in the one warm-up epoch
    model, card = load_model(folder, "cpu")
    val = [row for row in predictions(trained) if (row["fold"], row["part"]) == (str(fold), "val")]
    losses = []
    for row in val:
        output = bag_output(model, read_bag(trained.folder.bag(row["slide_id"])), "cpu")
        losses.append(-math.log(probabilities(output.logits)[card.classes.index(row["label"])]))
    best = min(lines, key=lambda line: float(line[2]))
    assert np.mean(losses) == pytest.approx(float(best[2]), abs=2e-6)
    assert card.trained["best_epoch"] == int(best[0])
    assert card.trained["epochs"] == len(lines)


def test_a_second_run_touches_no_file(trained: Project) -> None:
    before = files(trained.config.out)
    assert train(trained) == ([], [])
    assert files(trained.config.out) == before
    assert {name.split("/")[0] for name in before} == {"embed", "train"}  # no stray files


def test_an_additional_seed_trains_that_seed_only(trained: Project) -> None:
    before = files(trained.folder.fold("abmil", 0, 0))
    done, _ = train(changed(trained, "train.seeds=[0, 5]"))
    assert done == ["abmil_seed5_fold0", "abmil_seed5_fold1", "cohort"]
    assert files(trained.folder.fold("abmil", 0, 0)) == before
    assert train(trained)[0] == ["cohort"]  # back to one seed: the table loses the rows, the folders remain
    assert {row["seed"] for row in predictions(trained)} == {"0"}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_bytes_whatever_the_state_of_the_process(
    trained: Project, tmp_path: Path, threads: int
) -> None:
    again = planted_project(tmp_path, 40)
    again = Project(again.config, trained.slides, trained.cohort)
    before, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.manual_seed(99 + threads)
    expected_draw = torch.Generator().manual_seed(99 + threads)
    try:
        train(again)
        assert torch.get_num_threads() == threads
        assert torch.are_deterministic_algorithms_enabled() == algorithms
        assert torch.rand(1).item() == torch.rand(1, generator=expected_draw).item()
    finally:
        torch.set_num_threads(before)
    for fold in (0, 1):
        old, new = (files(p.folder.fold("abmil", 0, fold)) for p in (trained, again))
        assert {name: content for name, (_, content) in old.items()} == {n: content for n, (_, content) in new.items()}


def test_other_seeds_and_folds_give_other_weights(trained: Project) -> None:
    train(changed(trained, "train.seeds=[0, 5]"))
    digests = {load_card(trained.folder.fold("abmil", s, f)).weights_sha256 for s in (0, 5) for f in (0, 1)}
    assert len(digests) == 4
    train(trained)


def test_training_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(planted_project(tmp_path, 12, train={"epochs": 1}))[1] == []
    assert capfd.readouterr() == ("", "")


def test_every_model_is_trained_on_the_same_folds(tmp_path: Path) -> None:
    models = [{"name": "mean", "options": {"hidden": 8}}, {"name": "max", "id": "top", "options": {"hidden": 8}}]
    project = planted_project(tmp_path, 12, train={"epochs": 1}, aggregate={"models": models})
    assert train(project)[1] == []
    rows = predictions(project)
    tested = {
        m: {(r["fold"], r["slide_id"]) for r in rows if (r["model"], r["part"]) == (m, "test")} for m in ("mean", "top")
    }
    assert tested["mean"] == tested["top"]
    assert len(tested["mean"]) == 12


def test_splits_of_the_manifest_give_one_fold(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 12, train={"epochs": 1})
    rows = tuple(
        type(s)(s.slide_id, s.path, s.patient_id, s.label, ("train", "val", "test")[i // 4])
        for i, s in enumerate(project.slides)
    )
    done, failures = train(Project(project.config, rows, rows))
    assert (done, failures) == (["abmil_seed0_fold0", "cohort"], [])
    assert [(r["slide_id"], r["part"]) for r in predictions(project)] == [
        (f"s{i:02d}", "val" if i < 8 else "test") for i in range(4, 12)
    ]


def test_three_classes_have_no_threshold(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 18, train={"epochs": 1})
    rows = tuple(type(s)(s.slide_id, s.path, s.slide_id, "abc"[i % 3]) for i, s in enumerate(project.slides))
    assert train(Project(project.config, rows, rows))[1] == []
    assert load_card(project.folder.fold("abmil", 0, 0)).threshold is None
    assert "prob_c" in predictions(project)[0]


def test_training_stops_early_when_validation_no_longer_improves(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 12, train={"epochs": 60, "patience": 2, "lr": 0.05, "max_patches": 3})
    assert train(project)[1] == []
    for fold in (0, 1):
        trained = load_card(project.folder.fold("abmil", 0, fold)).trained
        assert trained["epochs"] in {trained["best_epoch"] + 2, 60}
        assert trained["epochs"] < 60


def test_every_epoch_has_its_own_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    original = FoldData.training

    def recorded(data: FoldData, epoch: int, **options: Any) -> Any:
        epochs.append(epoch)
        return original(data, epoch, **options)

    monkeypatch.setattr(FoldData, "training", recorded)
    assert train(planted_project(tmp_path, 12, train={"epochs": 3}))[1] == []
    assert epochs == [0, 1, 2, 0, 1, 2]


def test_checking_whether_folds_are_current_loads_no_torch() -> None:
    code = "import sys, wsi_pipeline.train.stage; print({'torch', 'lightning'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_accumulated_sampled_bf16_training_runs(tmp_path: Path) -> None:
    options = {"epochs": 2, "accumulate": 4, "max_patches": 7, "precision": "bf16", "clip_norm": 0, "balanced": False}
    assert train(planted_project(tmp_path, 12, train=options))[1] == []


def test_tensorboard_logs_are_written_when_configured(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    project = planted_project(tmp_path, 12, train={"epochs": 2})
    train(project)
    before = read_key(project.folder.fold("abmil", 0, 0) / "model.json")
    assert train(changed(project, "train.tensorboard=true"))[0] == []  # it changes no result, so nothing is trained
    (project.folder.fold("abmil", 0, 0) / "model.json").unlink()
    assert train(changed(project, "train.tensorboard=true"))[1] == []
    assert list((project.folder.fold("abmil", 0, 0) / "tensorboard").glob("events*"))
    assert read_key(project.folder.fold("abmil", 0, 0) / "model.json") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": {"lr": 1e30}}, "no epoch of training has a finite validation loss; set a lower train.lr"),
        ({"aggregate": {"models": [{"name": "abmil", "options": {"hiden": 3}}]}}, "has no option 'hiden'"),
        ({"aggregate": {"models": ["abnil"]}}, "did you mean 'abmil'"),
    ],
)
def test_configuration_errors_stop_the_run(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WsiError, match=message):
        train(planted_project(tmp_path, 12, **options))


def test_a_missing_tensorboard_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(WsiError, match=r"needs the package tensorboard; pip install 'wsi-pipeline\[tensorboard\]'"):
        train(planted_project(tmp_path, 12, train={"tensorboard": True}))


def test_training_without_labels_is_an_error(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 4)
    rows = tuple(type(s)(s.slide_id, s.path, s.patient_id) for s in project.slides)
    with pytest.raises(ConfigError, match="no labelled slide"):
        train(Project(project.config, rows, rows))


def test_a_slide_without_a_bag_is_reported_and_left_out(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 13, train={"epochs": 1})
    project.folder.bag("s12").unlink()
    _, failures = train(project)
    assert [(f.slide_id, f.stage) for f in failures] == [("s12", "train")]
    assert "s12" not in {row["slide_id"] for row in predictions(project)}


def test_a_failed_fold_is_reported_and_no_incomplete_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = planted_project(tmp_path, 12, train={"epochs": 1})
    train(project)
    original = stage.train_fold

    def fails(job: Any, **given: Any) -> int:
        if job.split.fold == 1:
            raise RuntimeError("out of memory")
        return original(job, **given)

    monkeypatch.setattr(stage, "train_fold", fails)
    done, failures = train(changed(project, "train.lr=0.001"))
    assert done == ["abmil_seed0_fold0", "abmil_seed0_fold1"]
    assert [(f.slide_id, f.message) for f in failures] == [("abmil_seed0_fold1", "unforeseen: out of memory")]
    assert not (project.folder.train / "predictions.csv").exists()


def test_the_learning_rate_warms_up_and_then_follows_a_half_cosine() -> None:
    factors = [lr_factor(epoch, warmup=2, epochs=6) for epoch in range(6)]
    cosines = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert factors == pytest.approx([1 / 3, 2 / 3, *cosines])
    assert lr_factor(0, warmup=5, epochs=3) == pytest.approx(1 / 6)


def test_validation_auroc_is_the_fraction_of_pairs_in_order() -> None:
    labels = np.array([0, 1, 1, 0], np.int64)
    scores = np.array([0.2, 0.9, 0.3, 0.3])
    assert macro_auroc(labels, np.stack([1 - scores, scores], axis=1)) == 3.5 / 4
    three = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    assert macro_auroc(np.array([0, 1, 2, 1], np.int64), three) == pytest.approx((1 + 1 + 1) / 3)
    assert math.isnan(macro_auroc(np.array([0, 0], np.int64), np.array([[0.5, 0.5], [0.4, 0.6]])))


def test_models_contain_neither_times_nor_paths(trained: Project) -> None:
    text = (trained.folder.fold("abmil", 0, 0) / "model.json").read_text()
    assert str(trained.config.out) not in text
    assert set(json.loads(text)["made_by"]) == {"program", "version", "stage"}


def test_the_last_epochs_weights_are_kept_when_configured(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 12, train={"epochs": 6, "patience": 1, "lr": 0.05, "keep": "last"})
    assert train(project)[1] == []
    for fold in (0, 1):
        trained = load_card(project.folder.fold("abmil", 0, fold)).trained
        assert (trained["epochs"], trained["best_epoch"]) == (6, 6)
