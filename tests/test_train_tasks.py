"""Every task learns planted evidence; losses and scores equal their definitions, written as loops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_data import DIM, PATCHES, planted_project, write_bag
from test_train_stage import predictions, train

from wsi_pipeline.aggregate.checkpoint import load_card
from wsi_pipeline.aggregate.inference import GAP, bag_tensors
from wsi_pipeline.concordance import concordance
from wsi_pipeline.config import ModelChoice, TrainConfig, train_of
from wsi_pipeline.config.train_recipes import RECIPES
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.project import Project
from wsi_pipeline.store import read_bag
from wsi_pipeline.train.labels import outputs, strata, units
from wsi_pipeline.train.losses import class_weights, score, symmetric_cross_entropy, task_loss
from wsi_pipeline.train.optimizer import build_optimizer
from wsi_pipeline.train.splits import make_splits, site_of
from wsi_pipeline.train.survival import cox_loss
from wsi_pipeline.types import SlideRow

rng = np.random.default_rng(0)


# --- losses and scores -------------------------------------------------------------------------------------------


def slow_cox(risk: Any, time: Any, event: Any) -> float:
    total = 0.0
    for i in range(len(risk)):
        if event[i]:
            at_risk = [math.exp(risk[j]) for j in range(len(risk)) if time[j] >= time[i]]
            total += math.log(sum(at_risk)) - risk[i]
    return total / float(sum(event))


def slow_concordance(risk: Any, time: Any, event: Any) -> float:
    won = pairs = 0.0
    for i in range(len(risk)):
        for j in range(len(risk)):
            if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                pairs += 1
                won += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return won / pairs if pairs else math.nan


@pytest.mark.parametrize("seed", range(20))
def test_cox_loss_and_concordance_equal_their_definitions_ties_included(seed: int) -> None:
    generator = np.random.default_rng(seed)
    time, event = generator.integers(1, 6, 12).astype(float), generator.random(12) < 0.6
    risk = generator.integers(-2, 3, 12).astype(float)
    event[0] = True
    found = cox_loss(torch.tensor(risk), torch.tensor(time), torch.tensor(event.astype(float)))
    assert float(found) == pytest.approx(slow_cox(risk, time, event), abs=1e-12)
    assert concordance(time, event, risk) == pytest.approx(slow_concordance(risk, time, event), nan_ok=True)


def test_a_risk_set_without_an_event_has_no_gradient() -> None:
    risk = torch.randn(4, requires_grad=True)
    cox_loss(risk, torch.arange(4.0), torch.zeros(4)).backward()
    assert risk.grad is not None
    assert not risk.grad.any()
    assert math.isnan(concordance(np.arange(3.0), np.zeros(3, bool), np.zeros(3)))


def test_symmetric_cross_entropy_is_both_directions_with_log_zero_replaced_by_minus_four() -> None:
    logits, label = torch.tensor([[1.0, -0.5, 0.2]]), 2
    p = logits.softmax(1)[0].tolist()
    forward = -math.log(p[label])
    reverse = -sum(p[c] * (0.0 if c == label else -4.0) for c in range(3))
    assert float(symmetric_cross_entropy(logits, torch.tensor([label]))) == pytest.approx(0.1 * forward + reverse)


def test_class_weights_are_by_inverse_frequency_with_mean_one() -> None:
    targets = torch.tensor([[0.0]] * 9 + [[1.0]] * 3)
    weights = class_weights(TrainConfig(), targets, 2)
    assert weights.tolist() == pytest.approx([12 / 18, 12 / 6])
    assert float(weights[targets[:, 0].long()].mean()) == pytest.approx(1)
    several = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert class_weights(TrainConfig(task="multilabel"), several, 2).tolist() == [3.0, 1.0]


@pytest.mark.parametrize("loss", ["cross_entropy", "weighted"])
def test_a_bag_has_the_same_weight_alone_as_in_a_group(loss: Any) -> None:
    targets, logits = torch.tensor([[0.0], [1.0], [0.0]]), torch.randn(3, 2)
    of = task_loss(TrainConfig(loss=loss), targets, 2)
    alone = [float(of(logits[i : i + 1], targets[i : i + 1])) for i in range(3)]
    assert float(of(logits, targets)) == pytest.approx(np.mean(alone), rel=1e-6)


def test_validation_scores_of_the_tasks() -> None:
    assert score("regression", np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])) == 1.0
    assert score("regression", np.array([[1.5], [1.5]]), np.array([[1.0], [2.0]])) == 0.0
    assert score("survival", np.array([[3.0], [2.0], [1.0]]), np.array([[1.0, 1], [2, 1], [3, 0]])) == 1.0
    two = np.array([[2.0, -1.0], [-2.0, 1.0], [1.0, -2.0], [-1.0, 2.0]])
    assert score("multilabel", two, np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])) == 1.0


# --- targets and splits ------------------------------------------------------------------------------------------


def row(i: int, **facts: Any) -> SlideRow:
    return SlideRow(**{"slide_id": f"s{i:02d}", "path": Path(f"s{i:02d}.svs"), "patient_id": f"p{i:02d}", **facts})


def test_a_multilabel_slide_lists_its_classes_and_a_dash_means_none() -> None:
    rows = [row(0, label="a; b"), row(1, label="-"), row(2, label="c")]
    assert outputs(rows, TrainConfig(task="multilabel")) == ("a", "b", "c")


def test_regression_needs_numeric_labels() -> None:
    with pytest.raises(ConfigError, match=r"slide 's00' has label 'high'; train.task=regression needs a number"):
        outputs([row(0, label="high")], TrainConfig(task="regression"))


def test_the_site_is_in_a_tcga_barcode_and_else_must_be_given() -> None:
    assert site_of(row(0, patient_id="TCGA-05-4244")) == "05"
    assert site_of(row(0, patient_id="TCGA-05-4244", site="Leeds")) == "Leeds"
    with pytest.raises(ConfigError, match="has no site"):
        site_of(row(0))


def test_site_preserving_folds_keep_each_site_whole() -> None:
    rows = [row(i, label="ab"[(i // 2) % 2], site=f"site{i % 9}") for i in range(72)]
    splits = make_splits(rows, TrainConfig(site_preserving=True, folds=3), seed=0)
    sites = {r.slide_id: r.site for r in rows}
    for split in splits:
        assert not {sites[s] for s in split.train + split.val} & {sites[s] for s in split.test}
    assert sorted(s for split in splits for s in split.test) == [r.slide_id for r in rows]
    with pytest.raises(ConfigError, match=r"there are 9 site\(s\), too few for 10 folds"):
        make_splits(rows, TrainConfig(site_preserving=True, folds=10), seed=0)


@pytest.mark.parametrize("task", ["regression", "multilabel", "survival"])
def test_folds_of_every_task_test_each_slide_once_and_split_no_patient(task: Any) -> None:
    several = ["a", "b", "a;b", "-", "c", "c", "c"]
    labels = {"regression": [str(i * 0.5) for i in range(40)], "multilabel": [several[i % 7] for i in range(40)]}
    rows = [
        row(
            i,
            patient_id=f"p{i // 2}",
            label=labels[task][i] if task in labels else None,
            time=float(i),
            event=i % 3 > 0,
        )
        for i in range(40)
    ]
    config = TrainConfig(task=task, folds=4)
    assert set(strata(rows, config)) == {r.slide_id for r in rows}
    splits = make_splits(rows, config, seed=1)
    assert sorted(s for split in splits for s in split.test) == [r.slide_id for r in rows]
    patient = {r.slide_id: r.patient_id for r in rows}
    for split in splits:
        parts = [{patient[s] for s in part} for part in (split.train, split.val, split.test)]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]


def test_slides_of_one_bag_must_have_the_same_label() -> None:
    with pytest.raises(ConfigError, match=r"slides of patient 'p' have different labels; .* train.bag=slide"):
        units([row(0, patient_id="p", label="a"), row(1, patient_id="p", label="b")], "patient")


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_values_that_the_user_does_not_set(name: str) -> None:
    config = TrainConfig(recipe=name, lr=0.5)
    assert config.lr == 0.5
    assert all(getattr(config, key) == value for key, value in RECIPES[name].items() if key != "lr")
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], config)
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()


def test_a_model_may_have_its_own_recipe() -> None:
    section = TrainConfig(epochs=7, weight_decay=0.3)
    own = train_of(section, ModelChoice(name="dsmil", train={"recipe": "dsmil", "epochs": 9}))
    assert (own.epochs, own.betas, own.weight_decay, own.optimizer) == (9, (0.5, 0.9), 1e-3, "adam")
    assert train_of(section, ModelChoice(name="abmil")) == section
    with pytest.raises(ConfigError, match=r"train\.folds is the same for all models"):
        train_of(section, ModelChoice(name="abmil", train={"folds": 3}))
    with pytest.raises(ConfigError, match="train: unknown key 'lrr'"):
        train_of(section, ModelChoice(name="abmil", train={"lrr": 3}))


def test_the_error_for_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there is no recipe 'clamm'; known: default, transmil, clam, dsmil, dtfd"):
        TrainConfig(recipe="clamm")


# --- complete training runs --------------------------------------------------------------------------------------


def project_of(
    out: Path, task: str, strength: list[tuple[float, float]], epochs: int = 15, **facts: list[Any]
) -> Project:
    """One slide per pair of strengths, which are planted in two groups of four channels of the first four patches."""
    train_section = {"task": task, "folds": 2, "epochs": epochs, "feature_drop": 0.05, "risk_set": 8}
    project = planted_project(out, 2, train=train_section)
    rows = []
    for i, (first, second) in enumerate(strength):
        features = np.random.default_rng(i).standard_normal((PATCHES, DIM)).astype(np.float32)
        features[:4, :4] += 3 * first
        features[:4, 4:8] += 3 * second
        own = {name: values[i] for name, values in facts.items()}
        rows.append(row(i, **own))
        write_bag(project.folder.bag(rows[-1].slide_id), features)
    return Project(project.config, tuple(rows), tuple(rows))


def test_multilabel_training_learns_each_class(tmp_path: Path) -> None:
    has = [(float(i % 2), float(i // 2 % 2)) for i in range(40)]
    labels = [";".join(n for n, h in zip("ab", pair, strict=True) if h) or "-" for pair in has]
    project = project_of(tmp_path, "multilabel", has, label=labels)
    assert train(project)[1] == []
    test = [r for r in predictions(project) if r["part"] == "test"]
    for name in "ab":
        probabilities: dict[bool, list[float]] = {True: [], False: []}
        for r in test:
            probabilities[name in r["label"]].append(float(r[f"prob_{name}"]))
        assert np.mean([t > f for t in probabilities[True] for f in probabilities[False]]) > 0.9
    card = load_card(project.folder.fold("abmil", 0, 0))
    assert (card.task, card.classes, card.threshold, card.calibration) == ("multilabel", ("a", "b"), None, ())


def test_regression_training_predicts_in_the_labels_unit(tmp_path: Path) -> None:
    amount = np.random.default_rng(1).random(48)
    labels = [f"{500 + 200 * a}" for a in amount]
    project = project_of(tmp_path, "regression", [(2 * a, 0.0) for a in amount], label=labels)
    assert train(project)[1] == []
    test = [r for r in predictions(project) if r["part"] == "test"]
    truth, predicted = (np.array([float(r[k]) for r in test]) for k in ("label", "value"))
    assert np.corrcoef(truth, predicted)[0, 1] > 0.8
    assert 450 < predicted.mean() < 750
    card = load_card(project.folder.fold("abmil", 0, 0))
    assert card.scale[0] == pytest.approx(600, abs=40)
    assert (card.task, card.temperature) == ("regression", None)


def test_survival_training_ranks_patients_by_time_to_event(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    hazard = generator.random(60)
    time = generator.exponential(np.exp(-8 * hazard))
    event = list(generator.random(60) < 0.8)
    strength = [(2 * h, 0.0) for h in hazard]
    project = project_of(tmp_path, "survival", strength, epochs=60, time=list(time), event=event)
    assert train(project)[1] == []
    test = [r for r in predictions(project) if r["part"] == "test"]
    found = []
    for fold in "01":  # risks are relative: those of two models are not comparable
        own = [r for r in test if r["fold"] == fold]
        risk, times, events = (np.array([float(r[k]) for r in own]) for k in ("risk", "time", "event"))
        found.append(concordance(times, events > 0, risk))
    assert np.mean(found) > 0.7
    assert load_card(project.folder.fold("abmil", 0, 0)).classes == ("risk",)


def test_the_slides_of_a_patient_can_form_one_bag(tmp_path: Path) -> None:
    project = planted_project(tmp_path, 24, train={"bag": "patient", "epochs": 12})
    rows = tuple(replace(s, patient_id=f"p{i // 4}_{i % 2}") for i, s in enumerate(project.slides))
    project = Project(project.config, rows, rows)
    assert train(project)[1] == []
    test = [r for r in predictions(project) if r["part"] == "test"]
    assert sorted(r["patient_id"] for r in test) == sorted({r.patient_id for r in rows})
    assert all(len(r["slide_id"].split(";")) == 2 for r in test)
    assert load_card(project.folder.fold("abmil", 0, 0)).bag == "patient"
    bags = [read_bag(project.folder.bag(s)) for s in ("s00", "s02")]
    features, xy = bag_tensors(bags)
    assert torch.equal(features[PATCHES:], bag_tensors(bags[1])[0])
    assert float(xy[PATCHES:, 0].min() - xy[:PATCHES, 0].max()) == GAP
    assert torch.equal(xy[PATCHES:] - xy[PATCHES], bag_tensors(bags[1])[1])
