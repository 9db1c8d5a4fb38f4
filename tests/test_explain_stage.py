"""The explain stage on a small run folder: which files are written, their content, and when they are made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explaining import scores_of

from wsi_pipeline.aggregate import models
from wsi_pipeline.aggregate.checkpoint import ModelCard, load_model, save_model
from wsi_pipeline.artifacts import Provenance, read_key
from wsi_pipeline.config import Config
from wsi_pipeline.csvtable import csv_text
from wsi_pipeline.engine import Engine, Job
from wsi_pipeline.errors import ConfigError, UnknownNameError, WsiError
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project
from wsi_pipeline.store import BagWriter, read_bag, read_explanations
from wsi_pipeline.types import Float32, PatchGrid, SlideRow

DIM = 6
SMALL = {"abmil": {"hidden": 8, "attention_dim": 4}, "transmil": {"hidden": 8, "heads": 2, "landmarks": 4}}
MODELS = {"mean": {"hidden": 8}, **SMALL}


class SmallRun:
    """A run folder with bags and two folds of each model; fold f was trained on p{1 - f}, and both on p2."""

    def __init__(self, root: Path, names: Sequence[str] = ("abmil", "transmil"), classes: str = "no yes") -> None:
        self.root, self.names, self.classes = root, tuple(names), tuple(classes.split())
        self.slides = [SlideRow(f"s{i}", root / f"s{i}.tif", patient_id=f"p{i}") for i in range(4)]
        for i, slide in enumerate(self.slides):
            self.write_bag(slide.slide_id, np.random.default_rng(i).standard_normal((12 + i, DIM)))
        for name in self.names:
            for fold in range(2):
                self.write_model(name, fold)
        rows = [(name, 0, fold, "s2", "yes", "val") for name in self.names for fold in range(2)]
        columns = ["model", "seed", "fold", "slide_id", "label", "part"]
        (root / "train" / "predictions.csv").write_text(csv_text(columns, rows))

    def project(self, **explain: Any) -> Project:
        choices = [{"name": name, "options": MODELS[name]} for name in self.names]
        data = {"slides": "m.csv", "out": self.root, "aggregate": {"models": choices}, "explain": explain}
        return Project(Config.model_validate(data), tuple(self.slides), tuple(self.slides))

    def explain(self, **explain: Any) -> tuple[list[str], Engine]:
        """Run the stage; returns the files that were made, as model/method/slide, and the engine."""
        project, made = self.project(**explain), Made()
        with Engine(project.config.engine, self.root, made) as engine:
            run_stage("explain", project, engine)
        return sorted(made.names), engine

    def write_bag(self, slide_id: str, features: np.ndarray, key: str = "bag") -> None:
        n = len(features)
        grid = PatchGrid(
            slide_id=slide_id,
            xy_px0=np.stack([np.arange(n) % 4 * 100, np.arange(n) // 4 * 100], axis=1).astype(np.int64),
            side_px=100,
            side_px0=(100.0, 100.0),
            stride_px0=(100.0, 100.0),
            target_mpp=0.5,
            mpp=(0.5, 0.5),
            slide_size_px0=(400, 1000),
            bounds_px0=(0, 0, 400, 1000),
        )
        with BagWriter(self.root / "embed" / f"{slide_id}.h5", grid, features.shape[1], "float32") as writer:
            writer.append(features)
            writer.finish(np.ones(n, bool), "lite0", "digest", Provenance.of(key, "embed"))

    def write_model(self, name: str, fold: int, scale: float = 1.0) -> None:
        torch.manual_seed(fold)
        model = models.build(name, DIM, len(self.classes), **MODELS[name])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        card = ModelCard(
            model=name,
            options=dict(MODELS[name]),
            classes=self.classes,
            encoder="lite0",
            encoder_options={},
            weights_digest="digest",
            dim=DIM,
            target_mpp=0.5,
            side_px=100,
            threshold=0.5 if len(self.classes) == 2 else None,
            trained={"seen_patients": [f"p{1 - fold}", "p2"], "seen_slides": [f"s{1 - fold}", "s2"]},
        )
        save_model(self.fold(name, fold), model, card, "key")

    def fold(self, name: str, fold: int) -> Path:
        return self.root / "train" / name / f"seed0_fold{fold}"

    def path(self, name: str, method: str, slide_id: str) -> Path:
        return self.root / "explain" / name / method / f"{slide_id}.h5"

    def direct(self, name: str, method: str, slide_id: str, fold: int, target: int = 1) -> Float32:
        """The method's scores on one member, without the stage."""
        model, _ = load_model(self.fold(name, fold), "cpu")
        bag = read_bag(self.root / "embed" / f"{slide_id}.h5")
        features, xy = torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)
        return scores_of(explainers.build(method), model, features, xy, target)


class Made:
    """Observer that records the finished jobs."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, stage: str, total: int, current: int) -> None:
        assert stage == "explain"

    def advanced(self, stage: str, job: Job, result: object) -> None:
        self.names.append("/".join(job.output.with_suffix("").parts[-3:]))

    def waiting(self, stage: str, why: str) -> None: ...

    def finished(self) -> None: ...


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path)


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


# --- the files -----------------------------------------------------------------------------------------------


def test_every_method_that_fits_is_run_on_every_model_and_slide(run: SmallRun) -> None:
    made, engine = run.explain()
    fitting = {"abmil": ["attention", "contribution", "gradient_x_input", "instance"]}
    fitting["transmil"] = ["attention", "gradient_x_input", "instance"]
    assert made == sorted(f"{name}/{m}/s{i}" for name in fitting for m in fitting[name] for i in range(4))
    assert engine.failures == []
    assert all(run.path(*name.split("/")).exists() for name in made)


@pytest.mark.parametrize("method", ["attention", "contribution", "instance", "gradient_x_input"])
def test_a_slide_is_explained_by_the_members_not_trained_on_its_patient(run: SmallRun, method: str) -> None:
    run.explain(methods=[method])
    one, zero, mean = (
        run.direct("abmil", method, "s1", 1),
        run.direct("abmil", method, "s0", 0),
        np.mean([run.direct("abmil", method, "s3", fold) for fold in range(2)], axis=0),
    )
    for slide_id, expected in {"s0": zero, "s1": one, "s3": mean}.items():
        (found,) = read_explanations(run.path("abmil", method, slide_id))
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)
    # all members were trained on p2, so all of them explain it
    (found,) = read_explanations(run.path("abmil", method, "s2"))
    expected = np.mean([run.direct("abmil", method, "s2", fold) for fold in range(2)], axis=0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)


def test_a_file_describes_its_scores(run: SmallRun) -> None:
    run.explain(methods=["contribution"])
    (found,) = read_explanations(run.path("abmil", "contribution", "s0"))
    assert (found.model, found.method, found.target) == ("abmil", "contribution", "yes")
    assert (found.unit, found.signed) == ("attribution", True)
    assert found.label == "abmil contribution: yes"
    np.testing.assert_array_equal(found.grid.xy_px0, read_bag(run.root / "embed" / "s0.h5").grid.xy_px0)


def test_the_classes_of_the_config_are_explained_in_its_order(run: SmallRun) -> None:
    run.explain(methods=["contribution"], classes=["yes", "no"])
    yes, no = read_explanations(run.path("abmil", "contribution", "s0"))
    assert (yes.target, no.target) == ("yes", "no")
    np.testing.assert_allclose(yes.scores, -no.scores)


def test_with_more_than_two_classes_the_predicted_one_is_explained(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, ["abmil"], classes="a b c")
    run.explain(methods=["instance"])
    for slide_id, fold in {"s0": 0, "s1": 1}.items():
        (found,) = read_explanations(run.path("abmil", "instance", slide_id))
        model, card = load_model(run.fold("abmil", fold), "cpu")
        bag = read_bag(run.root / "embed" / f"{slide_id}.h5")
        logits = model(torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)).logits
        target = int(logits.argmax())
        assert found.target == card.classes[target]
        np.testing.assert_allclose(found.scores, run.direct("abmil", "instance", slide_id, fold, target), rtol=1e-5)


def test_a_bag_of_one_patch_is_explained(run: SmallRun) -> None:
    run.write_bag("s0", np.ones((1, DIM)))
    _, engine = run.explain()
    assert engine.failures == []
    (found,) = read_explanations(run.path("abmil", "attention", "s0"))
    assert found.scores.tolist() == [1.0]


# --- when files are made -------------------------------------------------------------------------------------


def test_a_second_run_touches_no_file(run: SmallRun) -> None:
    run.explain()
    before = snapshot(run.root)
    assert run.explain()[0] == []
    assert snapshot(run.root) == before


def test_adding_a_method_computes_only_that_method(run: SmallRun) -> None:
    run.explain(methods=["attention"])
    before = snapshot(run.root)
    made, _ = run.explain(methods=["instance", "attention"])
    assert made == sorted(f"{name}/instance/s{i}" for name in ("abmil", "transmil") for i in range(4))
    assert before.items() <= snapshot(run.root).items()


def test_a_changed_bag_is_explained_again_and_the_others_are_not(run: SmallRun) -> None:
    run.explain(methods=["attention"])
    run.write_bag("s3", np.ones((5, DIM)), key="another")
    assert run.explain(methods=["attention"])[0] == ["abmil/attention/s3", "transmil/attention/s3"]


def test_a_changed_member_explains_its_slides_again(run: SmallRun) -> None:
    run.explain(methods=["attention"])
    run.write_model("abmil", 0, scale=2.0)
    assert run.explain(methods=["attention"])[0] == ["abmil/attention/s0", "abmil/attention/s2", "abmil/attention/s3"]


def test_other_classes_are_explained_again(run: SmallRun) -> None:
    run.explain(methods=["contribution"])
    key = read_key(run.path("abmil", "contribution", "s0"))
    assert len(run.explain(methods=["contribution"], classes=["no"])[0]) == 4
    assert read_key(run.path("abmil", "contribution", "s0")) != key


def test_the_bytes_do_not_depend_on_torchs_threads(run: SmallRun) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for path in (run.root / "explain").rglob("*.h5"):
                path.unlink()
            run.explain()
            assert torch.get_num_threads() == threads
            found.append({p: content for p, (_, content) in snapshot(run.root / "explain").items()})
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert len(found[0]) == 28


# --- errors --------------------------------------------------------------------------------------------------


def test_features_that_are_not_finite_fail_their_slide_only(run: SmallRun) -> None:
    features = np.ones((5, DIM))
    features[3, 2] = np.nan
    run.write_bag("s1", features)
    made, engine = run.explain(methods=["attention"])
    assert len(made) == 8
    assert {(f.slide_id, f.error) for f in engine.failures} == {("s1", "SlideError")}
    assert "first in row 3 of 5" in engine.failures[0].message
    assert not run.path("abmil", "attention", "s1").exists()
    assert run.path("abmil", "attention", "s0").exists()


def test_scores_that_are_not_finite_are_not_written(run: SmallRun) -> None:
    run.write_model("abmil", 0, scale=1e30)
    _, engine = run.explain(methods=["contribution"])
    assert [(f.slide_id, f.error) for f in engine.failures] == [(s, "SlideError") for s in ("s0", "s2", "s3")]
    assert "not finite" in engine.failures[0].message
    assert not run.path("abmil", "contribution", "s0").exists()


def test_a_slide_without_a_bag_is_listed(run: SmallRun) -> None:
    (run.root / "embed" / "s2.h5").unlink()
    made, engine = run.explain(methods=["attention"])
    assert len(made) == 6
    assert [f.slide_id for f in engine.failures] == ["s2"]


def test_an_unknown_class_is_refused_with_the_models_classes(run: SmallRun) -> None:
    with pytest.raises(UnknownNameError, match="'tumour'; it has: no, yes"):
        run.explain(classes=["tumour"])


def test_an_unknown_method_is_refused_with_the_known_ones(run: SmallRun) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'attention'"):
        run.explain(methods=["atention"])


def test_a_method_that_fits_no_model_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        SmallRun(tmp_path, ["transmil"]).explain(methods=["attention", "contribution"])
    reason, _, fitting = str(error.value).partition("; methods that fit: ")
    assert reason == (
        "explain.methods: 'contribution' fits no model here (transmil is not a sum over patches; this method needs a "
        "model with evidence() and bias(), as abmil has)"
    )
    assert {"attention", "gradient_x_input", "instance"} <= set(fitting.split(", "))
    assert "contribution" not in fitting


def test_default_methods_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    made, _ = SmallRun(tmp_path, ["mean"]).explain()
    assert sorted({name.split("/")[1] for name in made}) == ["contribution", "gradient_x_input", "instance"]


def test_a_bag_of_another_encoder_stops_the_run(run: SmallRun) -> None:
    run.write_bag("s0", np.ones((4, DIM + 1)))
    with pytest.raises(WsiError, match="7 features a patch, not 6"):
        run.explain(methods=["attention"])
