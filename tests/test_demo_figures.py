"""The claims about the demo, verified on a finished one: `make demo OUT=demo`, then WSI_DEMO=demo pytest."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated() -> Path:
    if "WSI_DEMO" not in os.environ:
        pytest.skip("set WSI_DEMO to the folder of a finished demo")
    return Path(os.environ["WSI_DEMO"]) / "run" / "evaluate"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def models_of_the_demo() -> list[str]:
    """All five, or those of the demo that is verified: CI trains fewer."""
    if "WSI_DEMO" not in os.environ:
        return ["mean", "abmil", "clam_sb", "transmil", "dtfd"]
    config = yaml.safe_load((Path(os.environ["WSI_DEMO"]) / "run" / "config.yaml").read_text(encoding="utf-8"))
    return [model["id"] or model["name"] for model in config["aggregate"]["models"]]


MODELS = models_of_the_demo()


@pytest.mark.parametrize("model", MODELS)
def test_slides_of_held_out_patients_are_classified(evaluated: Path, model: str) -> None:
    found = {(r["model"], r["metric"]): r["value"] for r in rows(evaluated / "metrics.csv")}
    assert float(found[model, "auroc"]) >= 0.9
    predictions = rows(evaluated.parent / "predict" / "predictions.csv")
    assert sum(p["model"] == model for p in predictions) == 24
    assert all(p["held_out"] == "true" for p in predictions)


def test_all_models_are_in_one_table_over_two_seeds(evaluated: Path) -> None:
    found = {(r["model"], r["measure"]): r for r in rows(evaluated / "seeds.csv")}
    assert list(found) == [(model, measure) for model in MODELS for measure in ("auroc", "auprc")]
    for line in found.values():
        values = [float(value) for value in line["values"].split()]
        assert len(values) == int(line["seeds"]) == 2
        assert float(line["mean"]) == pytest.approx(np.mean(values), abs=1e-6)
        assert float(line["sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert all(float(found[model, "auroc"]["mean"]) >= 0.9 for model in MODELS)


def test_the_selected_method_of_the_transformer_localises_tumour_better_than_its_attention(evaluated: Path) -> None:
    selection = json.loads((evaluated.parent / "explain" / "transmil" / "selection.json").read_text())
    assert selection["aupc"][selection["method"]] < selection["random"]
    auprc = defaultdict(list)
    for row in rows(evaluated / "maps.csv"):
        auprc[row["model"], row["method"]].append(float(row["auprc"]))
    assert np.mean(auprc["transmil", selection["method"]]) > np.mean(auprc["transmil", "attention"])


@pytest.mark.parametrize("model", ["abmil", "transmil"])
def test_every_method_is_measured_on_the_annotated_slides(evaluated: Path, model: str) -> None:
    found = {(r["method"], r["metric"]): r for r in rows(evaluated / "explanations.csv") if r["model"] == model}
    methods = {method for method, _ in found}
    assert {"attention", "instance", "lrp", "gradient_x_input", "integrated_gradients", "random"} <= methods
    assert {int(found[method, "auprc"]["n_slides"]) for method in methods} == {12}
    aupc = {method: float(found[method, "aupc_drop"]["value"]) for method in methods}
    assert min(aupc, key=lambda name: aupc[name]) != "random"
    assert all(float(found[method, "miou"]["value"]) > 0 for method in methods)


def test_the_contribution_map_localises_the_annotated_tumour(evaluated: Path) -> None:
    maps = defaultdict(list)
    for row in rows(evaluated / "maps.csv"):
        maps[row["model"], row["method"]].append((float(row["auprc"]), float(row["base_rate"])))
    auprc, base_rate = np.mean(maps["abmil", "contribution"], axis=0)
    assert len(maps["abmil", "contribution"]) == 12
    assert auprc >= 0.6
    assert auprc >= 3 * base_rate


def test_every_slide_has_a_heatmap_and_qupath_tiles(evaluated: Path) -> None:
    run = evaluated.parent
    assert len(list((run / "heatmap").glob("*.ome.zarr"))) == 24
    assert len(list((run / "view").glob("*.geojson"))) == 24
    assert (run / "report.html").stat().st_size < 20 * 2**20
    assert rows(run / "failures.csv") == []
