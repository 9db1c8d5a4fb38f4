"""The method that patch flipping selects, and the summary maps, on the explain stage's small run folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from test_explain_stage import SmallRun, snapshot

from wsi_pipeline.aggregate.checkpoint import load_model
from wsi_pipeline.config import Config
from wsi_pipeline.engine import Engine
from wsi_pipeline.errors import ConfigError, SlideError
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.method_selection import POINTS, Case, validation_scores
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.summary_maps.map_arithmetic import agreement, consensus, faithful_weights
from wsi_pipeline.explain.summary_maps.map_uncertainty import entropy, reference_distance, reference_of
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project, read_selection
from wsi_pipeline.store import read_bag, read_explanations
from wsi_pipeline.types import Explanation

METHODS = ["attention", "contribution", "gradient_x_input"]
MAPS = ["consensus", "agreement", "spread", "sign_agreement", "entropy", "distance"]


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path, ["abmil"])


def found(run: SmallRun, method: str, slide_id: str) -> Explanation:
    (one,) = read_explanations(run.path("abmil", method, slide_id))
    return one


# --- auto ----------------------------------------------------------------------------------------------------


def test_auto_is_the_candidate_with_the_lowest_aupc_on_the_validation_slides(run: SmallRun) -> None:
    run.explain(methods=["attention", "auto"], candidates=METHODS)
    bag = read_bag(run.root / "embed" / "s2.h5")  # each fold's validation slide
    features, xy = torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)
    models = [load_model(run.fold("abmil", fold), "cpu")[0] for fold in range(2)]
    cases = [Case([ExplainedModel(model)], features, xy) for model in models]
    expected = validation_scores(cases, {name: explainers.build(name) for name in METHODS}, points=POINTS)
    choice = read_selection(run.root / "explain" / "abmil" / "selection.json")
    assert choice is not None
    assert choice.aupc == pytest.approx(expected)
    assert choice.aupc[choice.method] == min(expected.values())
    assert choice.slides == 2
    for method in {"attention", choice.method}:
        of = found(run, method, "s0")
        assert of.aupc == pytest.approx(expected[method])
        assert of.selected == (method == choice.method)
    explained = {path.name for path in (run.root / "explain" / "abmil").iterdir() if path.name[0] != "."}
    assert explained == {"attention", choice.method, "selection.json"}


def test_a_single_auto_is_a_list_of_one_and_is_not_selected_twice(run: SmallRun) -> None:
    made, _ = run.explain(methods="auto", candidates=METHODS)
    assert "explain/abmil/selection" in made
    before = snapshot(run.root)
    assert run.explain(methods="auto", candidates=METHODS)[0] == []
    assert snapshot(run.root) == before


def test_a_candidate_that_does_not_fit_is_skipped(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, ["transmil"])
    run.explain(methods="auto", candidates=["contribution", "attention"])
    assert json.loads((run.root / "explain/transmil/selection.json").read_text())["method"] == "attention"
    with pytest.raises(ConfigError, match=r"explain.candidates: none fits transmil"):
        run.explain(methods="auto", candidates=["contribution"])


def test_auto_is_refused_for_a_model_from_outside_the_run(run: SmallRun) -> None:
    data = {"slides": "m.csv", "out": run.root, "explain": {"methods": "auto"}}
    data["predict"] = {"model": run.root / "train" / "abmil"}
    project = Project(Config.model_validate(data), tuple(run.slides), tuple(run.slides))
    with Engine(project.config.engine, run.root) as engine, pytest.raises(ConfigError, match="name the methods"):
        run_stage("explain", project, engine)


# --- summary maps --------------------------------------------------------------------------------------------


def test_consensus_and_agreement_are_those_of_the_methods_maps(run: SmallRun) -> None:
    run.explain(methods=METHODS, summary_maps=["consensus", "agreement"])
    maps = [found(run, method, "s3") for method in METHODS]
    values, signed = [one.scores for one in maps], [one.signed for one in maps]
    joined, agreed = found(run, "consensus", "s3"), found(run, "agreement", "s3")
    np.testing.assert_allclose(joined.scores, consensus(values, signed), rtol=1e-6)
    np.testing.assert_allclose(agreed.scores, agreement(values, signed), rtol=1e-6)
    assert (joined.unit, joined.signed, joined.target) == ("fraction", False, "yes")


def test_the_consensus_is_weighted_by_the_measured_aupc(run: SmallRun) -> None:
    run.explain(methods=["contribution", "gradient_x_input", "auto"], candidates=METHODS, summary_maps=["consensus"])
    choice = read_selection(run.root / "explain" / "abmil" / "selection.json")
    assert choice is not None
    names = list(dict.fromkeys(["contribution", "gradient_x_input", choice.method]))
    weights = faithful_weights({name: choice.aupc[name] for name in names}, choice.random)
    maps = [found(run, name, "s0") for name in names]
    expected = consensus([m.scores for m in maps], [m.signed for m in maps], [weights[name] for name in names])
    np.testing.assert_allclose(found(run, "consensus", "s0").scores, expected, rtol=1e-6, atol=1e-7)


def test_uncertainty_is_over_the_members_not_trained_on_the_patient(run: SmallRun) -> None:
    run.explain(methods=["attention", "contribution"], summary_maps=MAPS)
    members = np.stack([run.direct("abmil", "contribution", "s3", fold) for fold in range(2)])
    np.testing.assert_allclose(found(run, "spread", "s3").scores, members.std(0, ddof=1), rtol=1e-4, atol=1e-7)
    same = np.sign(members[0]) == np.sign(members[1])
    np.testing.assert_array_equal(found(run, "sign_agreement", "s3").scores, same.astype(float))
    assert found(run, "spread", "s3").unit == "attribution"

    single = np.stack([run.direct("abmil", "instance", "s3", fold) for fold in range(2)]).astype(float)
    expected = entropy(np.stack([1 - single, single], axis=-1))
    np.testing.assert_allclose(found(run, "entropy", "s3").scores, expected, atol=1e-5)

    features = {
        name: torch.from_numpy(read_bag(run.root / "embed" / f"{name}.h5").features)
        for name in ["s0", "s1", "s2", "s3"]
    }
    trained_on = [torch.cat([features[f"s{1 - fold}"], features["s2"]]) for fold in range(2)]
    expected = np.mean([reference_distance(features["s3"], reference_of(known)) for known in trained_on], axis=0)
    np.testing.assert_allclose(found(run, "distance", "s3").scores, expected, rtol=1e-5)
    assert found(run, "distance", "s3").unit == "distance"


def test_a_map_that_cannot_be_made_is_reported_once_and_the_others_are_made(
    run: SmallRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wsi_pipeline"):
        _, engine = run.explain(methods=["contribution"], summary_maps=["consensus", "spread", "entropy"])
    assert engine.failures == []
    assert [record.getMessage() for record in caplog.records] == [
        "abmil has no map 'consensus', which needs the maps of two methods (4 slides)",
        "abmil has no map 'spread', which needs two members that were not trained on the patient; train more seeds "
        "(2 slides)",
    ]
    assert not run.path("abmil", "consensus", "s0").exists()
    assert not run.path("abmil", "spread", "s0").exists()  # only one member was not trained on p0
    assert run.path("abmil", "spread", "s3").exists()
    assert run.path("abmil", "entropy", "s0").exists()


def test_adding_a_map_adds_files_and_a_map_follows_its_inputs(run: SmallRun) -> None:
    run.explain(methods=METHODS, summary_maps=["entropy"])
    before = snapshot(run.root)
    made, _ = run.explain(methods=METHODS, summary_maps=["entropy", "consensus", "distance"])
    wanted = [f"abmil/{name}/s{i}" for name in ("consensus", "distance") for i in range(4)]
    assert [name for name in made if ".reference" not in name] == sorted(wanted)
    assert before.items() <= snapshot(run.root).items()
    assert run.explain(methods=METHODS, summary_maps=["entropy", "consensus", "distance"])[0] == []
    run.write_bag("s1", np.ones((9, 6)), key="another")
    made, _ = run.explain(methods=METHODS, summary_maps=["entropy", "consensus", "distance"])
    # s1 itself; and the distance of the slides whose member was trained on it
    assert {"abmil/entropy/s1", "abmil/consensus/s1", "abmil/distance/s1", "abmil/distance/s0"} <= set(made)
    assert "abmil/consensus/s0" not in made


def test_a_map_that_can_no_longer_be_made_is_removed(run: SmallRun) -> None:
    run.explain(methods=["contribution", "attention"], summary_maps=["agreement"])
    assert run.path("abmil", "agreement", "s0").exists()
    run.explain(methods=["contribution"], summary_maps=["agreement"])
    assert not run.path("abmil", "agreement", "s0").exists()


def test_a_slide_that_cannot_be_explained_has_no_summary_map(run: SmallRun) -> None:
    features = np.ones((5, 6))
    features[3, 2] = np.nan
    run.write_bag("s1", features)
    _, engine = run.explain(methods=METHODS, summary_maps=["consensus"])
    assert {(f.slide_id, f.error) for f in engine.failures} == {("s1", SlideError.__name__)}
    assert not run.path("abmil", "consensus", "s1").exists()
    assert run.path("abmil", "consensus", "s0").exists()
