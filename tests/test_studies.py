"""A study's plan and its summary: which runs there are, the config of each, and mean ± sd over the seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from wsi_pipeline.artifacts import Provenance, write_provenance
from wsi_pipeline.errors import ArtifactError, ConfigError
from wsi_pipeline.studies.study_plan import Study
from wsi_pipeline.studies.study_table import Design, run_measures, summarise, summary_markdown, summary_rows

STUDY: dict[str, Any] = {
    "data": "data",
    "out": "out",
    "encoders": [
        {"id": "lite", "embed": {"encoder": "lite0"}},
        {"id": "wide", "embed": {"encoder": "resnet50"}, "tile": {"side_px": 256}},
    ],
    "models": ["max", {"name": "abmil", "id": "gated", "options": {"gated": True}}],
    "seeds": [3, 4],
    "explain_seeds": [3],
    "settings": {"tile": {"mpp": 1.0}, "train": {"epochs": 7}},
}


def test_runs_are_encoders_times_models_times_seeds() -> None:
    assert Study.of(STUDY).runs == (
        ("lite", "max", 3),
        ("lite", "max", 4),
        ("lite", "gated", 3),
        ("lite", "gated", 4),
        ("wide", "max", 3),
        ("wide", "max", 4),
        ("wide", "gated", 3),
        ("wide", "gated", 4),
    )


def test_the_config_of_a_run_has_its_model_and_seed_and_the_common_settings() -> None:
    assert yaml.safe_load(Study.of(STUDY).run_yaml("wide", "gated", 4)) == {
        "slides": "../../slides.csv",
        "out": "seed4",
        "tile": {"mpp": 1.0, "side_px": 256},
        "train": {"epochs": 7, "seeds": [4]},
        "embed": {"encoder": "resnet50"},
        "aggregate": {"models": [{"name": "abmil", "id": "gated", "options": {"gated": True}}]},
    }


def test_the_config_of_the_bags_does_not_depend_on_models() -> None:
    """Therefore another model never makes an encoder's bags out of date."""
    assert yaml.safe_load(Study.of(STUDY).bags_yaml("lite")) == {
        "slides": "../slides.csv",
        "out": "bags",
        "tile": {"mpp": 1.0},
        "train": {"epochs": 7},
        "embed": {"encoder": "lite0"},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": []}, "encoders"),
        ({"seed": [1]}, "seed: Extra inputs"),
        ({"settings": {"train": {"epoch": 3}}}, "unknown key 'train.epoch'"),
        ({"settings": {"out": "another"}}, r"settings\.out"),
        ({"explain_seeds": [9]}, "explain_seeds: 9 is not among"),
        ({"view_seeds": [4]}, "view_seeds: 4 is not among"),
        ({"models": ["max", "max"]}, "same name"),
        ({"encoders": [{"id": "a"}, {"id": "a"}]}, "same id"),
    ],
)
def test_a_mistake_in_the_study_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study.of({**STUDY, **change})


# --- the table ------------------------------------------------------------------------------------------------


def test_only_held_out_maps_are_summarised() -> None:
    metrics = [{"model": "m", "metric": "auroc", "value": "0.9"}, {"model": "m", "metric": "f1", "value": ""}]
    maps = [
        {"model": "m", "method": "instance", "held_out": "true", "auprc": "0.2"},
        {"model": "m", "method": "instance", "held_out": "true", "auprc": "0.4"},
        {"model": "m", "method": "instance", "held_out": "false", "auprc": "1.0"},
    ]
    assert run_measures(metrics, [], maps) == {("m", "auroc"): 0.9, ("m", "map_auprc:instance"): pytest.approx(0.3)}


def test_values_of_patients_are_listed_if_they_differ_from_the_slides() -> None:
    slides = [{"model": m, "metric": "auroc", "value": "0.9"} for m in ("a", "b")]
    patients = [{"model": "a", "metric": "auroc", "value": "0.8"}, {"model": "b", "metric": "auroc", "value": "0.9"}]
    assert run_measures(slides, patients, []) == {
        ("a", "auroc"): 0.9,
        ("b", "auroc"): 0.9,
        ("a", "patients:auroc"): 0.8,
    }


def test_the_markdown_shows_headlines_and_the_csv_everything() -> None:
    design = Design("a", "lite0", "abmil")
    names = ("auroc", "ece", "froc_sensitivity_at_2", "patients:auroc", "map_auprc:instance")
    measures = {(design, name): [0.5] for name in names}
    assert summary_markdown(measures).splitlines()[0] == (
        "| design | encoder | model | runs | auroc | patients:auroc | map_auprc:instance |"
    )
    assert [row[3] for row in summary_rows(measures)] == list(names)


def test_the_table_has_mean_and_sample_sd() -> None:
    """0.8, 0.9, 1.0: mean 0.9, sd sqrt((0.01 + 0 + 0.01) / 2) = 0.1. One value has no sd."""
    one, other = Design("a", "lite0", "abmil"), Design("b", "lite0", "max")
    measures = {(one, "auroc"): [0.8, 0.9, 1.0], (other, "auroc"): [0.5], (other, "froc"): [0.25]}
    assert summary_rows(measures) == [
        ["a", "lite0", "abmil", "auroc", "0.900000", "0.100000", "3"],
        ["b", "lite0", "max", "auroc", "0.500000", "", "1"],
        ["b", "lite0", "max", "froc", "0.250000", "", "1"],
    ]
    assert summary_markdown(measures) == (
        "| design | encoder | model | runs | auroc | froc |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| a | lite0 | abmil | 3 | 0.900 ± 0.100 | – |\n"
        "| b | lite0 | max | 1 | 0.500 | 0.250 |\n"
    )


def finished(folder: Path, auroc: float) -> Path:
    (folder / "evaluate").mkdir(parents=True)
    (folder / "config.yaml").write_text("embed: {encoder: lite0}\n")
    (folder / "evaluate" / "metrics.csv").write_text(f"model,metric,value\nabmil,auroc,{auroc}\n")
    (folder / "evaluate" / "metrics_patients.csv").write_text(f"model,metric,value\nabmil,auroc,{auroc}\n")
    (folder / "evaluate" / "maps.csv").write_text("slide_id,model,method,held_out,auprc\n")
    return folder


def test_runs_in_one_folder_are_one_design(tmp_path: Path) -> None:
    runs = [finished(tmp_path / design / f"seed{i}", value) for design, i, value in
            [("x/a", 0, 0.5), ("x/a", 1, 0.7), ("y/a", 0, 1.0)]]  # fmt: skip
    text = summarise(runs, tmp_path / "out")
    assert "| x/a | lite0 | abmil | 2 | 0.600 ± 0.141 |" in text
    assert "| y/a | lite0 | abmil | 1 | 1.000 |" in text
    assert (tmp_path / "out" / "summary.md").read_text() == text
    assert (tmp_path / "out" / "summary.csv").read_text().splitlines()[1] == "x/a,lite0,abmil,auroc,0.600000,0.141421,2"


def test_a_run_of_another_schema_is_not_summarised(tmp_path: Path) -> None:
    run = finished(tmp_path / "a" / "seed0", 0.5)
    report = run / "evaluate" / "report.json"
    report.write_text("{}")
    write_provenance(report, Provenance("k", {}, schema=1))
    with pytest.raises(ArtifactError, match="was written with schema 1, this version reads 2"):
        summarise([run], tmp_path)


def test_a_run_that_is_not_evaluated_is_named(tmp_path: Path) -> None:
    run = finished(tmp_path / "a" / "seed0", 0.5)
    (run / "evaluate" / "metrics.csv").unlink()
    with pytest.raises(ArtifactError, match="run `wsi evaluate` first"):
        summarise([run], tmp_path)
