"""The method that patch flipping picks, and the maps made of maps, on the explain stage's small run folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from test_explain_stage import House, snapshot

from wsi_pipeline.aggregate.checkpoint import load_model
from wsi_pipeline.config import Config
from wsi_pipeline.engine import Engine
from wsi_pipeline.errors import ConfigError, SlideError
from wsi_pipeline.explain.explained_model import ExplainedModel
from wsi_pipeline.explain.method_selection import Case, validation_scores
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.selection_job import POINTS
from wsi_pipeline.explain.summary_maps.map_arithmetic import agreement, consensus, faithful_weights
from wsi_pipeline.explain.summary_maps.map_uncertainty import entropy, reference_distance, reference_of
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project, read_selection
from wsi_pipeline.store import read_bag, read_explanations
from wsi_pipeline.types import Explanation

METHODS = ["attention", "contribution", "gradient_x_input"]
MAPS = ["consensus", "agreement", "spread", "sign_agreement", "entropy", "distance"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, ["abmil"])


def found(house: House, method: str, slide_id: str) -> Explanation:
    (one,) = read_explanations(house.path("abmil", method, slide_id))
    return one


# --- auto ----------------------------------------------------------------------------------------------------


def test_auto_is_the_candidate_with_the_lowest_area_on_the_validation_slides(house: House) -> None:
    house.run(methods=["attention", "auto"], candidates=METHODS)
    bag = read_bag(house.root / "embed" / "s2.h5")  # each fold's validation slide
    features, xy = torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)
    models = [load_model(house.fold("abmil", fold), "cpu")[0] for fold in range(2)]
    cases = [Case([ExplainedModel(model)], features, xy) for model in models]
    expected = validation_scores(cases, {name: explainers.build(name) for name in METHODS}, points=POINTS)
    choice = read_selection(house.root / "explain" / "abmil" / "selection.json")
    assert choice is not None
    assert choice.aupc == pytest.approx(expected)
    assert choice.aupc[choice.method] == min(expected.values())
    assert choice.slides == 2
    for method in {"attention", choice.method}:
        of = found(house, method, "s0")
        assert of.aupc == pytest.approx(expected[method])
        assert of.selected == (method == choice.method)
    explained = {path.name for path in (house.root / "explain" / "abmil").iterdir() if path.name[0] != "."}
    assert explained == {"attention", choice.method, "selection.json"}


def test_auto_alone_is_a_list_of_one_and_is_not_picked_twice(house: House) -> None:
    made, _ = house.run(methods="auto", candidates=METHODS)
    assert "explain/abmil/selection" in made
    before = snapshot(house.root)
    assert house.run(methods="auto", candidates=METHODS)[0] == []
    assert snapshot(house.root) == before


def test_a_candidate_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    house = House(tmp_path, ["transmil"])
    house.run(methods="auto", candidates=["contribution", "attention"])
    assert json.loads((house.root / "explain/transmil/selection.json").read_text())["method"] == "attention"
    with pytest.raises(ConfigError, match=r"explain.candidates: none fits transmil"):
        house.run(methods="auto", candidates=["contribution"])


def test_a_given_model_has_no_validation_slides_here(house: House) -> None:
    data = {"slides": "m.csv", "out": house.root, "explain": {"methods": "auto"}}
    data["predict"] = {"model": house.root / "train" / "abmil"}
    project = Project(Config.model_validate(data), tuple(house.slides), tuple(house.slides))
    with Engine(project.config.engine, house.root) as engine, pytest.raises(ConfigError, match="name the methods"):
        run_stage("explain", project, engine)


# --- maps made of maps ---------------------------------------------------------------------------------------


def test_consensus_and_agreement_are_those_of_the_methods_maps(house: House) -> None:
    house.run(methods=METHODS, summary_maps=["consensus", "agreement"])
    maps = [found(house, method, "s3") for method in METHODS]
    values, signed = [one.scores for one in maps], [one.signed for one in maps]
    joined, agreed = found(house, "consensus", "s3"), found(house, "agreement", "s3")
    np.testing.assert_allclose(joined.scores, consensus(values, signed), rtol=1e-6)
    np.testing.assert_allclose(agreed.scores, agreement(values, signed), rtol=1e-6)
    assert (joined.unit, joined.signed, joined.target) == ("fraction", False, "yes")


def test_what_was_measured_weighs_in_the_consensus(house: House) -> None:
    house.run(methods=["contribution", "gradient_x_input", "auto"], candidates=METHODS, summary_maps=["consensus"])
    choice = read_selection(house.root / "explain" / "abmil" / "selection.json")
    assert choice is not None
    names = list(dict.fromkeys(["contribution", "gradient_x_input", choice.method]))
    weights = faithful_weights({name: choice.aupc[name] for name in names}, choice.random)
    maps = [found(house, name, "s0") for name in names]
    expected = consensus([m.scores for m in maps], [m.signed for m in maps], [weights[name] for name in names])
    np.testing.assert_allclose(found(house, "consensus", "s0").scores, expected, rtol=1e-6, atol=1e-7)


def test_uncertainty_is_over_the_members_that_judge(house: House) -> None:
    house.run(methods=["attention", "contribution"], summary_maps=MAPS)
    members = np.stack([house.direct("abmil", "contribution", "s3", fold) for fold in range(2)])
    np.testing.assert_allclose(found(house, "spread", "s3").scores, members.std(0, ddof=1), rtol=1e-4, atol=1e-7)
    same = np.sign(members[0]) == np.sign(members[1])
    np.testing.assert_array_equal(found(house, "sign_agreement", "s3").scores, same.astype(float))
    assert found(house, "spread", "s3").unit == "attribution"

    alone = np.stack([house.direct("abmil", "instance", "s3", fold) for fold in range(2)]).astype(float)
    expected = entropy(np.stack([1 - alone, alone], axis=-1))
    np.testing.assert_allclose(found(house, "entropy", "s3").scores, expected, atol=1e-5)

    features = {
        name: torch.from_numpy(read_bag(house.root / "embed" / f"{name}.h5").features)
        for name in ["s0", "s1", "s2", "s3"]
    }
    seen = [torch.cat([features[f"s{1 - fold}"], features["s2"]]) for fold in range(2)]
    expected = np.mean([reference_distance(features["s3"], reference_of(known)) for known in seen], axis=0)
    np.testing.assert_allclose(found(house, "distance", "s3").scores, expected, rtol=1e-5)
    assert found(house, "distance", "s3").unit == "distance"


def test_a_map_that_cannot_be_made_is_said_once_and_the_others_are_made(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wsi_pipeline"):
        _, engine = house.run(methods=["contribution"], summary_maps=["consensus", "spread", "entropy"])
    assert engine.failures == []
    assert [record.getMessage() for record in caplog.records] == [
        "abmil has no map 'consensus', which needs the maps of two methods (4 slides)",
        "abmil has no map 'spread', which needs two members that judge it; train more seeds (2 slides)",
    ]
    assert not house.path("abmil", "consensus", "s0").exists()
    assert not house.path("abmil", "spread", "s0").exists()  # one member has not seen p0
    assert house.path("abmil", "spread", "s3").exists()
    assert house.path("abmil", "entropy", "s0").exists()


def test_one_more_map_is_one_more_file_and_a_new_one_follows_what_it_rests_on(house: House) -> None:
    house.run(methods=METHODS, summary_maps=["entropy"])
    before = snapshot(house.root)
    made, _ = house.run(methods=METHODS, summary_maps=["entropy", "consensus", "distance"])
    wanted = [f"abmil/{name}/s{i}" for name in ("consensus", "distance") for i in range(4)]
    assert [name for name in made if ".reference" not in name] == sorted(wanted)
    assert before.items() <= snapshot(house.root).items()
    assert house.run(methods=METHODS, summary_maps=["entropy", "consensus", "distance"])[0] == []
    house.write_bag("s1", np.ones((9, 6)), key="another")
    made, _ = house.run(methods=METHODS, summary_maps=["entropy", "consensus", "distance"])
    # s1 itself; and the distance of the slides judged by the fold that was trained on it
    assert {"abmil/entropy/s1", "abmil/consensus/s1", "abmil/distance/s1", "abmil/distance/s0"} <= set(made)
    assert "abmil/consensus/s0" not in made


def test_a_map_that_can_no_longer_be_made_does_not_stay(house: House) -> None:
    house.run(methods=["contribution", "attention"], summary_maps=["agreement"])
    assert house.path("abmil", "agreement", "s0").exists()
    house.run(methods=["contribution"], summary_maps=["agreement"])
    assert not house.path("abmil", "agreement", "s0").exists()


def test_a_slide_that_cannot_be_explained_has_no_such_map_either(house: House) -> None:
    features = np.ones((5, 6))
    features[3, 2] = np.nan
    house.write_bag("s1", features)
    _, engine = house.run(methods=METHODS, summary_maps=["consensus"])
    assert {(f.slide_id, f.error) for f in engine.failures} == {("s1", SlideError.__name__)}
    assert not house.path("abmil", "consensus", "s1").exists()
    assert house.path("abmil", "consensus", "s0").exists()
