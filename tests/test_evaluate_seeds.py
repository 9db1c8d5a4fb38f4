"""Variation of a model's measures over seeds, from the test bags of every fold."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_pipeline.evaluate.seeds import over_seeds, seeds_table


def write(path: Path, columns: str, lines: list[str]) -> Path:
    path.write_text("\n".join(["model,seed,fold,slide_id,patient_id," + columns, *lines]) + "\n")
    return path


def test_the_folds_of_a_seed_are_pooled_without_validation_bags(tmp_path: Path) -> None:
    seeds = {"0": [(0, "b", 0.9), (1, "a", 0.2), (0, "a", 0.95)], "1": [(0, "b", 0.9), (1, "a", 0.2), (0, "a", 0.1)]}
    lines = [
        f"m,{s},{f},s{i},p{i},{y},test,{1 - p},{p}" for s, rows in seeds.items() for i, (f, y, p) in enumerate(rows)
    ]
    lines.append("m,0,0,v,v,b,val,0.9,0.1")
    path = write(tmp_path / "p.csv", "label,part,prob_a,prob_b", lines)
    area, precision = over_seeds(path, "classification")
    assert (area.model, area.measure, area.values) == ("m", "auroc", {"0": 0.5, "1": 1.0})
    assert area.mean == 0.75
    assert area.sd == pytest.approx(0.5**1.5)
    assert precision.measure == "auprc"
    assert seeds_table([area]).splitlines()[1] == "m,auroc,0.750000,0.353553,2,0.500000 1.000000"


def test_risks_of_two_folds_are_not_compared(tmp_path: Path) -> None:
    lines = [f"m,0,{fold},s,p,,{t},1,test,{risk}" for fold, t, risk in ((0, 1, 5), (0, 2, 4), (1, 1, -4), (1, 2, -5))]
    path = write(tmp_path / "p.csv", "label,time,event,part,risk", lines)
    (found,) = over_seeds(path, "survival")
    assert found.values == {"0": 1.0}
    assert seeds_table([found]).splitlines()[1] == "m,concordance,1.000000,,1,1.000000"


def test_regression_and_multilabel_have_their_own_measures(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "label,part,value", [f"m,0,0,s,p,{y},test,{v}" for y, v in ((1, 1), (2, 3))])
    means = {o.measure: o.mean for o in over_seeds(path, "regression")}
    assert means == pytest.approx({"mae": 0.5, "r2": -1.0})
    lines = [f"m,0,0,s,p,{y},test,{a},{b}" for y, a, b in (("a", 0.9, 0.1), ("a;b", 0.8, 0.9), ("-", 0.1, 0.2))]
    path = write(tmp_path / "l.csv", "label,part,prob_a,prob_b", lines)
    assert [o.mean for o in over_seeds(path, "multilabel")] == [1.0, 1.0]


def test_undefined_measures_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "label,part,prob_a,prob_b", ["m,0,0,s,p,a,test,0.5,0.5"])
    assert over_seeds(path, "classification") == []
