"""Prediction: the mean of the members not trained on the patient, for every slide; other bags are rejected."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_data import DIM, planted_features, planted_project, write_bag

from wsi_pipeline.aggregate import models
from wsi_pipeline.aggregate.checkpoint import ModelCard, load_model, save_model
from wsi_pipeline.apply import apply_config
from wsi_pipeline.config import PredictConfig, build_config
from wsi_pipeline.csvtable import read_csv
from wsi_pipeline.engine import Engine, Failure
from wsi_pipeline.errors import ArtifactError, WsiError
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.predict.ensemble_prediction import EnsemblePrediction, columns, combine_members, member_outputs
from wsi_pipeline.predict.ensembles import find_ensembles, held_out_members, load_members, member_logits
from wsi_pipeline.project import Project, RunFolder
from wsi_pipeline.store import read_bag
from wsi_pipeline.types import SlideRow


def predict(project: Project) -> list[Failure]:
    with Engine(project.config.engine, project.config.out) as engine:
        run_stage("predict", project, engine)
        return engine.failures


def predictions(project: Project) -> dict[tuple[str, str], dict[str, str]]:
    """(slide_id, model) -> row."""
    header, rows = read_csv(project.folder.predictions)
    found = [dict(zip(header, row, strict=True)) for row in rows]
    return {(row["slide_id"], row["model"]): row for row in found}


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Twelve labelled slides in two folds of two seeds, two models, and two slides without label."""
    project = planted_project(
        tmp_path_factory.mktemp("run"),
        14,
        train={"epochs": 2, "seeds": [3, 1]},
        aggregate={
            "models": [
                {"name": "mean", "options": {"hidden": 8}},
                {"name": "abmil", "options": {"hidden": 8}, "id": "ab"},
            ]
        },
    )
    rows = tuple(s if i < 12 else SlideRow(s.slide_id, s.path, s.patient_id) for i, s in enumerate(project.slides))
    project = Project(project.config, rows, rows)
    with Engine(project.config.engine, project.config.out) as engine:
        run_stage("train", project, engine)
    assert predict(project) == []
    return project


@pytest.fixture
def trained(run_once: Project, tmp_path: Path) -> Project:
    """A copy that a test may modify."""
    shutil.copytree(run_once.config.out, tmp_path / "run")
    return moved(run_once, out=str(tmp_path / "run"))


def moved(project: Project, **changes: Any) -> Project:
    data = project.config.model_dump(mode="json") | changes
    return Project(build_config(data, [], base=Path("/"), source="test"), project.slides, project.cohort)


def save(folder: Path, seen: list[str], seed: int = 0, **of_card: Any) -> Path:
    """An untrained model whose card lists these patients as seen."""
    card = ModelCard(
        model="mean",
        options={"hidden": 4},
        classes=("normal", "tumour"),
        encoder="lite0",
        encoder_options={},
        weights_digest="d0",
        dim=DIM,
        target_mpp=0.5,
        side_px=224,
        threshold=0.5,
        trained={"seen_patients": seen},
    )
    card = replace(card, **of_card)
    torch.manual_seed(seed)
    save_model(folder, models.build(card.model, card.dim, len(card.classes), **card.options), card, f"k{seed}")
    return folder


def apply(tmp_path: Path, model: Path, slides: int = 2, **sections: Any) -> Project:
    """A project that only predicts with ``model``."""
    project = planted_project(tmp_path / "incoming", slides, predict={"model": str(model)}, **sections)
    rows = tuple(SlideRow(s.slide_id, s.path, s.patient_id) for s in project.slides)
    return Project(project.config, rows, rows)


def test_every_slide_has_one_row_per_model_in_the_order_of_the_manifest(run_once: Project) -> None:
    header, _ = read_csv(run_once.folder.predictions)
    columns = (
        "slide_id patient_id label split model task members weights held_out threshold predicted "
        "prob_normal prob_tumour calibrated_normal calibrated_tumour entropy aleatoric epistemic set"
    )
    assert header == columns.split()
    assert list(predictions(run_once)) == [(f"s{i:02d}", m) for i in range(14) for m in ("mean", "ab")]


def test_a_training_patient_is_predicted_by_the_folds_that_held_it_out_and_a_new_one_by_all(run_once: Project) -> None:
    rows = predictions(run_once)
    for slide in run_once.slides:
        row = rows[slide.slide_id, "ab"]
        assert row["members"] == ("2" if slide.label else "4")  # one fold of each seed, or all of them
        assert row["held_out"] == "true"
        assert (row["patient_id"], row["label"], row["split"]) == (slide.patient_id, slide.label or "", "")


def test_with_one_seed_predictions_equal_those_of_training_for_the_test_slides(
    run_once: Project, tmp_path: Path
) -> None:
    shutil.copytree(run_once.config.out, tmp_path / "run")
    train = run_once.config.train.model_dump(mode="json") | {"seeds": [1]}
    project = moved(run_once, out=str(tmp_path / "run"), train=train)
    assert predict(project) == []
    header, lines = read_csv(run_once.folder.train / "predictions.csv")
    tested = [row for line in lines if (row := dict(zip(header, line, strict=True)))["part"] == "test"]
    tested = [row for row in tested if row["seed"] == "1"]
    assert len(tested) == 24
    for row in tested:
        assert predictions(project)[row["slide_id"], row["model"]]["prob_tumour"] == row["prob_tumour"]


def test_an_ensemble_predicts_the_mean_softmax_of_its_members(run_once: Project) -> None:
    folders = [run_once.folder.fold("ab", seed, fold) for seed in (1, 3) for fold in (0, 1)]
    bag = read_bag(run_once.folder.bag("s13"))
    of_members, thresholds = [], []
    for folder in folders:
        model, card = load_model(folder, "cpu")
        with torch.no_grad():
            logits = model(torch.from_numpy(bag.features).float(), torch.from_numpy(bag.grid.xy_stride)).logits.double()
        of_members.append((logits.exp() / logits.exp().sum()).numpy())
        assert card.threshold is not None
        thresholds.append(card.threshold)
    row = predictions(run_once)["s13", "ab"]
    mean = np.mean(of_members, 0)
    assert [float(row["prob_normal"]), float(row["prob_tumour"])] == pytest.approx(mean, abs=1e-6)
    assert float(row["threshold"]) == pytest.approx(np.mean(thresholds), abs=1e-6)
    assert row["predicted"] == ("tumour" if mean[1] >= np.mean(thresholds) else "normal")


def test_probabilities_have_six_decimals_and_sum_to_one(run_once: Project) -> None:
    for row in predictions(run_once).values():
        texts = [row["prob_normal"], row["prob_tumour"]]
        assert all(len(text.partition(".")[2]) == 6 for text in [*texts, row["threshold"]])
        assert sum(map(float, texts)) == pytest.approx(1, abs=2e-6)


def test_a_second_run_touches_no_file(run_once: Project) -> None:
    before = files(run_once.config.out)
    assert predict(run_once) == []
    assert files(run_once.config.out) == before


def test_a_copy_gives_the_same_bytes_on_any_number_of_threads(trained: Project, run_once: Project) -> None:
    shutil.rmtree(trained.config.out / "predict")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert predict(trained) == []
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    new, old = trained.config.out / "predict", run_once.config.out / "predict"
    assert {name: (new / name).read_bytes() for name in files(new)} == {n: (old / n).read_bytes() for n in files(old)}


def test_an_edited_threshold_is_used_at_once_and_updates_only_the_slides_it_affects(trained: Project) -> None:
    before = files(trained.folder.predictions.parent / "slides")
    folder = trained.folder.fold("ab", 1, 0)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"threshold": 0.0}))
    assert predict(trained) == []
    after = files(trained.folder.predictions.parent / "slides")
    touched = {name for name in after if after[name] != before[name] and "made" not in name}
    seen = card["trained"]["seen_patients"]
    assert touched == {f"{s.slide_id}.csv" for s in trained.slides if s.patient_id not in seen}


def test_predicting_one_slide_keeps_the_rows_of_the_others(trained: Project) -> None:
    rows = predictions(trained)
    trained.folder.predictions.unlink()
    assert predict(replace(trained, slides=trained.slides[3:4])) == []
    assert predictions(trained) == rows


def test_held_out_members_have_not_seen_the_patient(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", ["p1", "p2"]), save(tmp_path / "b", ["p2", "p3"])
    assert held_out_members([a, b], "p1", ()) == ((b,), True)
    assert held_out_members([a, b], "p3", ()) == ((a,), True)
    assert held_out_members([a, b], "new", ()) == ((a, b), True)
    assert held_out_members([a, b], "p2", ()) == ((a, b), False)  # all have seen the patient
    save(tmp_path / "a", ["p1"], seed=1)
    assert held_out_members([a, b], "p2", ()) == ((a,), True)


def test_a_patient_with_another_id_is_recognised_by_the_slides(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", ["p1"], trained={"seen_patients": ["p1"], "seen_slides": ["s1"]})
    assert held_out_members([folder], "s1", ("s1", "s2")) == ((folder,), False)
    assert held_out_members([folder], "s3", ("s3",)) == ((folder,), True)


def test_a_model_from_elsewhere_cannot_select_which_code_runs(trained: Project, tmp_path: Path) -> None:
    path = save(tmp_path / "a", []) / "model.json"
    path.write_text(path.read_text().replace('"model": "mean"', '"model": "os:getcwd"'))
    predict = PredictConfig(model=tmp_path / "a")
    given = replace(trained, config=trained.config.model_copy(update={"predict": predict}))
    with pytest.raises(ArtifactError, match="names the plug-in 'os:getcwd', which is code"):
        find_ensembles(given)


def test_a_model_from_elsewhere_cannot_select_an_encoder_that_is_code(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    slides, out = [str(tmp_path / "a.svs")], tmp_path / "out"
    model = save(tmp_path / "model", [], encoder="os:getcwd", encoder_options={"dim": 4})
    with pytest.raises(ArtifactError, match="names the encoder 'os:getcwd', which is code; to allow it, --set"):
        apply_config(model, slides, out, [])
    assert not out.exists()
    allowed = apply_config(model, slides, out, ["embed.encoder=os:getcwd"]).embed
    assert (allowed.encoder, allowed.encoder_options) == ("os:getcwd", {"dim": 4})
    for name in ("lite0", "timm:resnet18.a1_in1k"):
        assert apply_config(save(tmp_path / name[:4], [], encoder=name), slides, out, []).embed.encoder == name


def test_a_given_folder_is_one_model_or_one_ensemble_per_model_name(tmp_path: Path) -> None:
    for name, options in (("mean", {"hidden": 4}), ("abmil", {"hidden": 4, "attention_dim": 2})):
        for fold in range(2):
            save(tmp_path / "models" / name / f"fold{fold}", [], model=name, options=options)
    found = find_ensembles(apply(tmp_path, tmp_path / "models"))
    assert {label: [f.name for f in folders] for label, folders in found.items()} == {
        "abmil": ["fold0", "fold1"],
        "mean": ["fold0", "fold1"],
    }
    assert list(find_ensembles(apply(tmp_path, tmp_path / "models" / "mean" / "fold1"))) == ["mean"]


def test_a_given_model_predicts_without_labels_and_without_training(tmp_path: Path) -> None:
    project = apply(tmp_path, save(tmp_path / "model", ["p00"]))
    assert predict(project) == []
    assert [(r["held_out"], r["members"]) for r in predictions(project).values()] == [("false", "1"), ("true", "1")]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"encoder": "uni"}, "bag of slide 's00' does not fit the model: it has encoder 'lite0', not 'uni'"),
        ({"weights_digest": "other"}, "encoder weights d0, not other"),
        ({"target_mpp": 1.0}, "0.5 µm/px, not 1"),
        ({"side_px": 256}, "patches of 224 px, not 256"),
    ],
)
def test_bags_of_another_kind_are_rejected(tmp_path: Path, card: dict[str, Any], message: str) -> None:
    project = apply(tmp_path, save(tmp_path / "model", [], **card))
    with pytest.raises(WsiError, match=message) as error:
        predict(project)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert not project.folder.predictions.exists()


def test_a_slide_whose_features_are_not_finite_fails_alone(tmp_path: Path) -> None:
    project = apply(tmp_path, save(tmp_path / "model", []), slides=3)
    assert predict(project) == []
    features = planted_features("s01", True)
    features[7] = np.nan
    write_bag(project.folder.bag("s01"), features)
    failures = predict(project)
    assert [(f.slide_id, f.error) for f in failures] == [("s01", "SlideError")]
    assert [slide_id for slide_id, _ in predictions(project)] == ["s00", "s02"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            {"classes": ("benign", "tumour")},
            r"predicts benign, tumour \(.*\), but .* normal, tumour \(.*\); give",
        ),
        ({"options": {"hidden": 5}}, "are both 'mean' but differ in their options"),
    ],
)
def test_models_that_cannot_form_an_ensemble_are_rejected(tmp_path: Path, card: dict[str, Any], message: str) -> None:
    save(tmp_path / "models" / "a", [])
    save(tmp_path / "models" / "b", [], **card)
    with pytest.raises(ArtifactError, match=message):
        find_ensembles(apply(tmp_path, tmp_path / "models"))


def test_without_a_model_the_error_suggests_training(trained: Project) -> None:
    train = trained.config.train.model_dump(mode="json") | {"seeds": [1, 9]}
    with pytest.raises(ArtifactError, match="no fold of model 'mean' with seed 9; run `wsi train` first"):
        find_ensembles(moved(trained, train=train))
    (trained.folder.train / "predictions.csv").unlink()
    with pytest.raises(ArtifactError, match=r"run `wsi train` first, or give predict\.model"):
        find_ensembles(trained)


def test_folds_that_the_config_no_longer_has_are_not_used(trained: Project) -> None:
    save(trained.folder.fold("ab", 1, 7), [])
    assert [f.name for f in find_ensembles(trained)["ab"]] == [
        "seed1_fold0",
        "seed1_fold1",
        "seed3_fold0",
        "seed3_fold1",
    ]


def test_members_are_loaded_once_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", [])
    (first, _), (second, _) = load_members([folder, folder], "cpu")
    assert first is second
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    write_bag(RunFolder(tmp_path).bag("s"), planted_features("s", False))
    logits = member_logits(load_members([folder], "cpu"), [read_bag(RunFolder(tmp_path).bag("s"))], "cpu")
    assert logits.shape == (1, 2)
    save(folder, [], seed=1)
    assert load_members([folder], "cpu")[0][0] is not first


def prediction_of(probabilities: list[float], threshold: float | None) -> EnsemblePrediction:
    numbers, names = np.array(probabilities), ("a", "b", "c")[: len(probabilities)]
    return EnsemblePrediction("classification", names, numbers, numbers, threshold, 0.0, 0.0, 0.0, None)


def test_of_two_classes_the_threshold_decides_and_of_more_the_highest_probability() -> None:
    assert prediction_of([0.6, 0.4], 0.4).predicted == 1
    assert prediction_of([0.6, 0.4], 0.400001).predicted == 0
    assert prediction_of([0.2, 0.5, 0.3], None).predicted == 1


def card_of(**facts: Any) -> ModelCard:
    given: dict[str, Any] = {
        "model": "mean",
        "options": {},
        "classes": ("a", "b", "c"),
        "encoder": "lite0",
        "encoder_options": {},
        "weights_digest": "d0",
        "dim": DIM,
        "target_mpp": 0.5,
        "side_px": 224,
        "threshold": None,
        "trained": {},
    }
    return ModelCard(**(given | facts))


def predict_logits(cards: list[ModelCard], logits: Any, **section: Any) -> EnsemblePrediction:
    """The prediction of an ensemble from its members' logits, without passes with dropout."""
    return combine_members(cards, member_outputs(cards, logits, logits[:0]), PredictConfig(**section))


def test_three_classes_are_combined_without_a_threshold() -> None:
    prediction = predict_logits([card_of(), card_of()], np.log([[0.2, 0.2, 0.6], [0.2, 0.6, 0.2]]))
    assert prediction.threshold is None
    assert prediction.outcome.tolist() == pytest.approx([0.2, 0.4, 0.4], abs=1e-6)
    assert prediction.epistemic == pytest.approx(prediction.entropy - prediction.aleatoric)
    assert prediction.epistemic > 0.1


def test_the_temperature_changes_the_calibrated_probability_only() -> None:
    prediction = predict_logits([card_of(temperature=2.0)], np.array([[1.0, 2.0, 4.0]]))
    soft = [np.exp([1.0, 2.0, 4.0]), np.exp([0.5, 1.0, 2.0])]
    assert prediction.outcome.tolist() == pytest.approx((soft[0] / soft[0].sum()).tolist(), abs=1e-6)
    assert prediction.calibrated.tolist() == pytest.approx((soft[1] / soft[1].sum()).tolist(), abs=1e-6)


def test_with_abstention_a_class_is_predicted_only_where_the_set_holds_exactly_one() -> None:
    cards = [card_of(calibration=(0.1,) * 30)]
    certain, uncertain = (
        predict_logits(cards, np.log([p]), alpha=0.1).decision(abstain=True)
        for p in ([0.01, 0.01, 0.98], [0.3, 0.3, 0.4])
    )
    assert (certain, uncertain) == ("c", "abstain")


def test_every_task_has_its_own_decision_and_columns() -> None:
    several = card_of(task="multilabel", temperature=1.0)
    assert predict_logits([several], np.array([[3.0, -3.0, 0.1]])).decision(abstain=False) == "a;c"
    assert [c.partition("_")[0] for c in columns("multilabel", "abc")][2:] == [
        *["prob"] * 3, *["calibrated"] * 3, "entropy", "aleatoric", "epistemic"
    ]  # fmt: skip
    value = card_of(task="regression", classes=("value",), scale=(600.0, 10.0))
    prediction = predict_logits([value] * 2, np.array([[1.0], [2.0]]))
    assert prediction.outcome.tolist() == [615.0]
    assert prediction.epistemic == 25.0
    assert prediction.decision(abstain=True) == ""
    assert columns("regression", ("value",)) == ["threshold", "predicted", "value", "epistemic"]


def patients(project: Project) -> dict[tuple[str, str], dict[str, str]]:
    header, rows = read_csv(project.folder.patients)
    found = [dict(zip(header, row, strict=True)) for row in rows]
    return {(row["patient_id"], row["model"]): row for row in found}


def test_a_patients_prediction_is_the_mean_of_its_slides(run_once: Project) -> None:
    slides, of_patient = predictions(run_once), patients(run_once)
    assert len(of_patient) == 2 * len({s.patient_id for s in run_once.slides})
    own = of_patient["p00", "ab"]  # slides s00 and s02
    assert (own["slides"], own["label"]) == ("2", "normal")
    mean = np.mean([float(slides[s, "ab"]["prob_tumour"]) for s in ("s00", "s02")])
    assert float(own["prob_tumour"]) == pytest.approx(mean, abs=2e-6)
    alone = of_patient["p04", "ab"]
    assert {k: alone[k] for k in alone if k != "slides"} == {
        k: v for k, v in slides["s04", "ab"].items() if k not in ("slide_id", "split")
    }


def test_a_model_trained_on_patients_predicts_the_joint_bag_of_a_patients_slides(tmp_path: Path) -> None:
    project = apply(tmp_path, save(tmp_path / "model", [], bag="patient"), slides=4)
    assert predict(project) == []
    row = patients(project)["p00", "mean"]
    features = np.concatenate([read_bag(project.folder.bag(s)).features for s in ("s00", "s02")])
    model, _ = load_model(tmp_path / "model", "cpu")
    with torch.no_grad():
        logits = model(torch.from_numpy(features).float(), torch.zeros(len(features), 2)).logits
    assert float(row["prob_tumour"]) == pytest.approx(float(logits.softmax(0)[1]), abs=2e-6)


def test_passes_with_dropout_add_uncertainty_but_change_no_probability(tmp_path: Path) -> None:
    options = {"hidden": 64, "dropout": 0.5}
    project = apply(tmp_path, save(tmp_path / "model", [], options=options))
    assert predict(project) == []
    plain = predictions(project)["s00", "mean"]
    passes = moved(project, predict={"model": str(tmp_path / "model"), "mc_dropout": 8})
    assert predict(passes) == []
    with_dropout = predictions(passes)["s00", "mean"]
    assert float(plain["epistemic"]) == 0.0
    assert float(with_dropout["epistemic"]) > 1e-5
    assert plain["prob_tumour"] == with_dropout["prob_tumour"]
    before = files(project.config.out)
    (project.config.out / "predict/slides/s00.csv").unlink()
    text = project.folder.predictions.read_bytes()
    assert predict(passes) == []
    assert project.folder.predictions.read_bytes() == text  # the same random draws
    assert before.keys() == files(project.config.out).keys()
