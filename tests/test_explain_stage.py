"""The explain stage on a small run folder: which files come, what is in them, and when they are made again."""

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


class House:
    """A run folder with bags and two folds of each model; fold f has seen patient p{1 - f}, and both p2."""

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

    def run(self, **explain: Any) -> tuple[list[str], Engine]:
        """Explain; returns the files that were made, as model/method/slide, and the engine."""
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
    """Remembers the jobs that were done."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, stage: str, total: int, current: int) -> None:
        assert stage == "explain"

    def advanced(self, stage: str, job: Job, result: object) -> None:
        self.names.append("/".join(job.output.with_suffix("").parts[-3:]))

    def waiting(self, stage: str, why: str) -> None: ...

    def finished(self) -> None: ...


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


# --- what comes out ------------------------------------------------------------------------------------------


def test_every_method_that_fits_is_run_on_every_model_and_slide(house: House) -> None:
    made, engine = house.run()
    fitting = {"abmil": ["attention", "contribution", "gradient_x_input", "instance"]}
    fitting["transmil"] = ["attention", "gradient_x_input", "instance"]
    assert made == sorted(f"{name}/{m}/s{i}" for name in fitting for m in fitting[name] for i in range(4))
    assert engine.failures == []
    assert all(house.path(*name.split("/")).exists() for name in made)


@pytest.mark.parametrize("method", ["attention", "contribution", "instance", "gradient_x_input"])
def test_a_slide_is_explained_by_the_members_that_have_not_seen_its_patient(house: House, method: str) -> None:
    house.run(methods=[method])
    one, zero, mean = (
        house.direct("abmil", method, "s1", 1),
        house.direct("abmil", method, "s0", 0),
        np.mean([house.direct("abmil", method, "s3", fold) for fold in range(2)], axis=0),
    )
    for slide_id, expected in {"s0": zero, "s1": one, "s3": mean}.items():
        (found,) = read_explanations(house.path("abmil", method, slide_id))
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)
    # all members have seen p2: better all of them than none
    (found,) = read_explanations(house.path("abmil", method, "s2"))
    expected = np.mean([house.direct("abmil", method, "s2", fold) for fold in range(2)], axis=0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)


def test_a_file_says_what_its_scores_are(house: House) -> None:
    house.run(methods=["contribution"])
    (found,) = read_explanations(house.path("abmil", "contribution", "s0"))
    assert (found.model, found.method, found.target) == ("abmil", "contribution", "yes")
    assert (found.unit, found.signed) == ("attribution", True)
    assert found.label == "abmil contribution: yes"
    np.testing.assert_array_equal(found.grid.xy_px0, read_bag(house.root / "embed" / "s0.h5").grid.xy_px0)


def test_the_classes_of_the_config_are_explained_in_its_order(house: House) -> None:
    house.run(methods=["contribution"], classes=["yes", "no"])
    yes, no = read_explanations(house.path("abmil", "contribution", "s0"))
    assert (yes.target, no.target) == ("yes", "no")
    np.testing.assert_allclose(yes.scores, -no.scores)


def test_of_more_than_two_classes_the_predicted_one_is_explained(tmp_path: Path) -> None:
    house = House(tmp_path, ["abmil"], classes="a b c")
    house.run(methods=["instance"])
    for slide_id, fold in {"s0": 0, "s1": 1}.items():
        (found,) = read_explanations(house.path("abmil", "instance", slide_id))
        model, card = load_model(house.fold("abmil", fold), "cpu")
        bag = read_bag(house.root / "embed" / f"{slide_id}.h5")
        logits = model(torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)).logits
        target = int(logits.argmax())
        assert found.target == card.classes[target]
        np.testing.assert_allclose(found.scores, house.direct("abmil", "instance", slide_id, fold, target), rtol=1e-5)


def test_a_bag_of_one_patch_is_explained(house: House) -> None:
    house.write_bag("s0", np.ones((1, DIM)))
    _, engine = house.run()
    assert engine.failures == []
    (found,) = read_explanations(house.path("abmil", "attention", "s0"))
    assert found.scores.tolist() == [1.0]


# --- when it is made -----------------------------------------------------------------------------------------


def test_a_second_run_touches_no_file(house: House) -> None:
    house.run()
    before = snapshot(house.root)
    assert house.run()[0] == []
    assert snapshot(house.root) == before


def test_one_more_method_computes_that_one_only(house: House) -> None:
    house.run(methods=["attention"])
    before = snapshot(house.root)
    made, _ = house.run(methods=["instance", "attention"])
    assert made == sorted(f"{name}/instance/s{i}" for name in ("abmil", "transmil") for i in range(4))
    assert before.items() <= snapshot(house.root).items()


def test_a_new_bag_is_explained_again_and_the_others_are_not(house: House) -> None:
    house.run(methods=["attention"])
    house.write_bag("s3", np.ones((5, DIM)), key="another")
    assert house.run(methods=["attention"])[0] == ["abmil/attention/s3", "transmil/attention/s3"]


def test_a_new_model_explains_again_what_it_judges(house: House) -> None:
    house.run(methods=["attention"])
    house.write_model("abmil", 0, scale=2.0)
    assert house.run(methods=["attention"])[0] == ["abmil/attention/s0", "abmil/attention/s2", "abmil/attention/s3"]


def test_other_classes_are_explained_again(house: House) -> None:
    house.run(methods=["contribution"])
    key = read_key(house.path("abmil", "contribution", "s0"))
    assert len(house.run(methods=["contribution"], classes=["no"])[0]) == 4
    assert read_key(house.path("abmil", "contribution", "s0")) != key


def test_the_bytes_do_not_depend_on_torchs_threads(house: House) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for path in (house.root / "explain").rglob("*.h5"):
                path.unlink()
            house.run()
            assert torch.get_num_threads() == threads
            found.append({p: content for p, (_, content) in snapshot(house.root / "explain").items()})
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert len(found[0]) == 28


# --- what can go wrong ---------------------------------------------------------------------------------------


def test_features_that_are_no_numbers_cost_their_slide_only(house: House) -> None:
    features = np.ones((5, DIM))
    features[3, 2] = np.nan
    house.write_bag("s1", features)
    made, engine = house.run(methods=["attention"])
    assert len(made) == 8
    assert {(f.slide_id, f.error) for f in engine.failures} == {("s1", "SlideError")}
    assert "first in row 3 of 5" in engine.failures[0].message
    assert not house.path("abmil", "attention", "s1").exists()
    assert house.path("abmil", "attention", "s0").exists()


def test_scores_that_are_no_numbers_are_not_written(house: House) -> None:
    house.write_model("abmil", 0, scale=1e30)
    _, engine = house.run(methods=["contribution"])
    assert [(f.slide_id, f.error) for f in engine.failures] == [(s, "SlideError") for s in ("s0", "s2", "s3")]
    assert "no numbers" in engine.failures[0].message
    assert not house.path("abmil", "contribution", "s0").exists()


def test_a_slide_without_a_bag_is_listed(house: House) -> None:
    (house.root / "embed" / "s2.h5").unlink()
    made, engine = house.run(methods=["attention"])
    assert len(made) == 6
    assert [f.slide_id for f in engine.failures] == ["s2"]


def test_an_unknown_class_is_refused_with_the_models_classes(house: House) -> None:
    with pytest.raises(UnknownNameError, match="'tumour'; it has: no, yes"):
        house.run(classes=["tumour"])


def test_an_unknown_method_is_refused_with_the_known_ones(house: House) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'attention'"):
        house.run(methods=["atention"])


def test_a_method_that_fits_no_model_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        House(tmp_path, ["transmil"]).run(methods=["attention", "contribution"])
    what, _, offer = str(error.value).partition("; methods that fit: ")
    assert what == (
        "explain.methods: 'contribution' fits no model here (transmil is no sum over patches; this method needs a "
        "model with evidence() and bias(), as abmil has)"
    )
    assert {"attention", "gradient_x_input", "instance"} <= set(offer.split(", "))
    assert "contribution" not in offer


def test_the_default_methods_leave_out_what_does_not_fit(tmp_path: Path) -> None:
    made, _ = House(tmp_path, ["mean"]).run()
    assert sorted({name.split("/")[1] for name in made}) == ["contribution", "gradient_x_input", "instance"]


def test_a_bag_of_another_encoder_stops_the_run(house: House) -> None:
    house.write_bag("s0", np.ones((4, DIM + 1)))
    with pytest.raises(WsiError, match="7 features a patch, not 6"):
        house.run(methods=["attention"])
