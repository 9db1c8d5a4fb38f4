"""What is explained for each task, on small studies of drawn slides, against oracles in plain torch.

Every default method gives the right number for the task's target, or one line states that it does not fit.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from explaining import scores_of
from torch import Tensor, nn

from wsi_pipeline.aggregate import models
from wsi_pipeline.aggregate.checkpoint import ModelCard, Task, load_model
from wsi_pipeline.config import ExplainConfig, load_config
from wsi_pipeline.demo import draw_cohort
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.pipeline import EXPLANATIONS, run_stages
from wsi_pipeline.predict.ensembles import card, find_ensembles, held_out_members
from wsi_pipeline.project import Project, open_project
from wsi_pipeline.store import read_bag, read_explanations
from wsi_pipeline.types import Explanation

SMALL = {
    "abmil": {"hidden": 16, "attention_dim": 8},
    "mean": {"hidden": 16},
    "transmil": {"hidden": 16, "heads": 2, "landmarks": 8},
    "clam_sb": {"hidden": 16, "attention_dim": 8},
    "dsmil": {},
    "dtfd": {"hidden": 16, "attention_dim": 8},
}
TASKS: tuple[Task, ...] = ("multilabel", "regression", "survival")
COLUMNS = ("slide_id", "path", "patient_id", "label", "time", "event")
DEFAULT = ExplainConfig().methods
FEW = {"explained_slides": 3, "flipping_points": 5, "infidelity_samples": 3, "sensitivity_samples": 1}


class Study(NamedTuple):
    """A finished run of one task, and its log."""

    task: Task
    project: Project
    log: list[str]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn slides and their bags, once for all tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    draw_cohort(folder, slides=12, patients=12, side_px=1500, workers=1)
    write_study(folder, "classification")
    assert run_stages(open_project(load_config(folder / "classification.yaml")), ("tile", "embed")) == []
    return folder


def write_study(folder: Path, task: Task) -> None:
    """Write the manifest and the config of one task; the labels follow the order of the slides and have no meaning."""
    with (folder / "slides.csv").open(encoding="utf-8", newline="") as file:
        slides = list(csv.DictReader(file))
    label: Callable[[int, str], str] = {
        "classification": lambda _, drawn: drawn,
        "multilabel": lambda i, _: ("luad", "lusc", "luad;lusc")[i % 3],
        "regression": lambda i, _: str(40 + 5 * i),
        "survival": lambda *_: "",
    }[task]
    with (folder / f"{task}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, slide in enumerate(slides):
            row = (slide["slide_id"], slide["path"], slide["patient_id"], label(i, slide["label"]))
            writer.writerow([*row, 10 + 3 * i, int(i % 3 != 0)] if task == "survival" else [*row, "", ""])
    settings: dict[str, Any] = {
        "slides": f"{task}.csv",
        "out": "run",
        "tile": {"mpp": 1.0, "side_px": 64},
        "embed": {"encoder": "timm:test_efficientnet.r160_in1k", "pretrained": False},
        "aggregate": {"models": [{"name": name, "options": SMALL[name]} for name in ("abmil", "mean", "transmil")]},
        "train": {"task": task, "folds": 2, "epochs": 2, "val_fraction": 0.34, "seeds": [0, 1]},
        "explain": {"summary_maps": ["consensus", "spread", "sign_agreement", "entropy"]},
        "evaluate": {"bootstrap": 20, "explained_models": ["abmil"], **FEW},
    }
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


@pytest.fixture(scope="module", params=TASKS)
def study(request: pytest.FixtureRequest, drawn: Path) -> Study:
    """One task trained and explained with the default methods; the bags are the same for all."""
    task: Task = request.param
    write_study(drawn, task)
    project = open_project(load_config(drawn / f"{task}.yaml"))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("wsi_pipeline").addHandler(handler)
    try:
        assert run_stages(project, ("train", "predict", "explain", "heatmap", "evaluate", EXPLANATIONS, "view")) == []
    finally:
        logging.getLogger("wsi_pipeline").removeHandler(handler)
    return Study(task, project, lines)


def maps_of(study: Study, model: str, method: str, slide_id: str) -> list[Explanation]:
    path = study.project.folder.explanation(model, method, slide_id)
    return read_explanations(path) if path.exists() else []


# --- oracles in plain torch: the model's weights, its formula, and the task's target -----------------------------


def target_of(task: Task, logits: Tensor, index: int) -> Tensor:
    if task == "classification":
        others = [logits[i] for i in range(len(logits)) if i != index]
        return logits[index] - sum(others, torch.zeros(())) / len(others)
    return logits[index]


def output_of(task: Task, logits: Tensor, index: int, scale: tuple[float, float]) -> float:
    if task == "multilabel":
        return float(1 / (1 + (-logits[index]).exp()))
    if task == "regression":
        return scale[0] + scale[1] * float(logits[index])
    return float(logits[index])


def plain_abmil(weights: dict[str, Tensor], features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (C,), attention (N,) and evidence (N, C) of gated attention-based MIL."""
    h = (features @ weights["embed.0.weight"].T + weights["embed.0.bias"]).clamp(min=0)
    v = (h @ weights["attend.0.weight"].T + weights["attend.0.bias"]).tanh()
    u = 1 / (1 + (-(h @ weights["gate.0.weight"].T + weights["gate.0.bias"])).exp())
    scores = ((v * u) @ weights["score.weight"].T)[:, 0]
    attention = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
    evidence = attention[:, None] * (h @ weights["classify.weight"].T)
    return evidence.sum(0) + weights["classify.bias"], attention, evidence


def expected(study: Study, method: str, of_model: ModelCard, folder: Path, bag_path: Path, index: int) -> np.ndarray:
    """(N,) of one member of abmil."""
    model, _ = load_model(folder, "cpu")
    weights = {name: value.double() for name, value in model.state_dict().items()}
    features = torch.from_numpy(read_bag(bag_path).features).double()
    if method == "attention":
        return plain_abmil(weights, features)[1].numpy()
    if method == "contribution":
        evidence = plain_abmil(weights, features)[2]
        return np.array([float(target_of(study.task, row, index)) for row in evidence])
    if method == "instance":
        single = [plain_abmil(weights, row[None])[0] for row in features]
        return np.array([output_of(study.task, logits, index, of_model.scale) for logits in single])
    leaf = features.clone().requires_grad_()
    target_of(study.task, plain_abmil(weights, leaf)[0], index).backward()
    assert leaf.grad is not None
    return (features * leaf.grad).sum(1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("method", DEFAULT)
def test_default_methods_explain_the_tasks_own_number(study: Study, method: str) -> None:
    members = find_ensembles(study.project)["abmil"]
    for slide in study.project.slides:
        found = maps_of(study, "abmil", method, slide.slide_id)
        folders, _ = held_out_members(members, slide.patient_id, (slide.slide_id,))
        classes = card(folders[0]).classes
        assert [one.target for one in found] == list(classes)
        bag = study.project.folder.bag(slide.slide_id)
        for index, one in enumerate(found):
            oracle = [expected(study, method, card(folder), folder, bag, index) for folder in folders]
            np.testing.assert_allclose(one.scores, np.mean(oracle, axis=0), rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_no_map_is_constant_and_each_has_the_unit_of_its_task(study: Study) -> None:
    units = {"multilabel": "probability", "regression": "value", "survival": "risk"}
    seen = 0
    for model in ("abmil", "mean", "transmil"):
        for method in DEFAULT:
            for slide in study.project.slides:
                for one in maps_of(study, model, method, slide.slide_id):
                    seen += 1
                    assert np.ptp(one.scores) > 0, (model, method, one.target)
                    assert one.unit == {"instance": units[study.task], "attention": "attention"}.get(
                        method, "attribution"
                    )
    assert seen >= 12 * len(DEFAULT)


@pytest.mark.slow
def test_a_method_that_does_not_fit_is_reported_in_one_line(study: Study) -> None:
    folder = study.project.folder.root / "explain"
    missing = {
        (m, method) for m in ("abmil", "mean", "transmil") for method in DEFAULT if not (folder / m / method).is_dir()
    }
    assert missing == {("mean", "attention"), ("transmil", "contribution")}
    for model, method in missing:
        (line,) = [line for line in study.log if line.startswith(f"{model} has no map {method!r}")]
        assert "this method needs" in line


@pytest.mark.slow
def test_patch_flipping_measures_the_tasks_prediction(study: Study) -> None:
    columns = {"multilabel": "prob_{}", "regression": "value", "survival": "risk"}
    with study.project.folder.predictions.open(encoding="utf-8", newline="") as file:
        predicted = {row["slide_id"]: row for row in csv.DictReader(file) if row["model"] == "abmil"}
    measured = sorted((study.project.folder.evaluate / "explanations" / "abmil").glob("*.json"))
    assert len(measured) == 3
    for path in measured:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = found["methods"]["contribution"]["flips"]["drop"]["most"][0]
        written = float(predicted[path.stem][columns[study.task].format(found["target"])])
        assert whole == pytest.approx(written, abs=2e-6, rel=1e-6)
        assert found["methods"]["contribution"]["unit"] == "attribution"
        assert found["methods"]["contribution"]["infidelity"] is not None


@pytest.mark.slow
def test_summary_maps_are_fractions_or_keep_the_unit_of_their_method(study: Study) -> None:
    for slide in study.project.slides:
        found = {name: maps_of(study, "abmil", name, slide.slide_id) for name in ("consensus", "spread", "entropy")}
        assert {one.unit for one in found["consensus"]} == {"fraction"}
        assert {one.unit for one in found["spread"]} == {"attribution"}
        assert bool(found["entropy"]) == (study.task == "multilabel")


@pytest.mark.slow
def test_the_report_and_qupath_name_the_unit(study: Study) -> None:
    unit = {"multilabel": "probability", "regression": "value", "survival": "risk"}[study.task]
    report = study.project.folder.report.read_text(encoding="utf-8")
    for target in card(find_ensembles(study.project)["abmil"][0]).classes:
        name = f"abmil instance: {target}"
        legends = re.findall(rf'<span class="name">{re.escape(name)}</span>(.*?)</div>', report, re.DOTALL)
        assert len(legends) == len(study.project.slides)
        assert all(unit in legend for legend in legends), legends[0]
        for slide in study.project.slides:
            tiles = json.loads(study.project.folder.tiles(slide.slide_id).read_text(encoding="utf-8"))
            features = tiles["features"] if isinstance(tiles, dict) else tiles
            measured = [one["properties"]["measurements"] for one in features if "measurements" in one["properties"]]
            assert measured
            assert all(name in measurements for measurements in measured)


# --- every method, on random models ------------------------------------------------------------------------------


def model_of(name: str, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, 6, outputs, **SMALL[name]).double().eval()


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "dsmil", "mean", "transmil"])
@pytest.mark.parametrize("method", ["lrp", "deeplift", "integrated_gradients", "lime", "kernel_shap"])
def test_complete_methods_add_up_to_the_tasks_target(method: str, name: str) -> None:
    features = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    xy = torch.stack([torch.arange(12), torch.zeros(12)], 1).double()
    takes = explainers.entry(method).options
    explainer = explainers.build(method, **{option: 12 for option in ("samples", "steps") if option in takes})
    tasks: tuple[Task, ...] = ("classification", *TASKS)
    for task in tasks:
        model = model_of(name, 1 if task in ("regression", "survival") else 3)
        explained = ExplainedModel(model, task)
        assert explainer.fits(explained) is None, task
        with torch.no_grad():
            logits = model(features, xy).logits
        for index in range(len(logits)):
            found = explainer(explained, features, xy, index)
            whole = found.scores.sum().item() + sum(found.residual.values())
            assert whole == pytest.approx(float(target_of(task, logits, index)), abs=1e-6), (task, index)


def test_labels_that_are_both_present_both_have_evidence_for_them() -> None:
    """With a softmax's contrast, two present labels could never both have positive contributions."""
    model = model_of("mean", 2)
    with torch.no_grad():
        model.get_parameter("classify.weight").abs_()
    features, xy = torch.rand(9, 6, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.float64)
    for index in (0, 1):
        scores = scores_of(explainers.build("contribution"), model, features, xy, index, "multilabel")
        with torch.no_grad():
            logit = model(features, xy).logits[index] - model.get_parameter("classify.bias")[index]
        assert scores.sum() == pytest.approx(float(logit), abs=1e-6)
        assert scores.min() >= 0


@pytest.mark.parametrize("task", ["regression", "survival"])
@pytest.mark.parametrize("name", ["clam_sb", "dsmil", "dtfd"])
def test_an_instance_classifier_does_not_fit_tasks_without_probability(name: str, task: Task) -> None:
    explained = ExplainedModel(model_of(name, 1), task)
    reason = explainers.build("instance_head").fits(explained)
    assert reason is not None
    assert "probability" in reason
    assert "\n" not in reason
    with pytest.raises(ConfigError, match="probability"):
        explainers.build("instance_head")(explained, torch.zeros(2, 6).double(), torch.zeros(2, 2).double(), 0)


def test_an_instance_classifier_of_labels_has_a_sigmoid_each() -> None:
    model = model_of("dsmil", 3)
    features, xy = torch.randn(5, 6, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    with torch.no_grad():
        logits = model.instance_logits(features, xy)  # type: ignore[operator]
    for index in range(3):
        scores = scores_of(explainers.build("instance_head"), model, features, xy, index, "multilabel")
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[:, index].numpy())), rtol=1e-6)
