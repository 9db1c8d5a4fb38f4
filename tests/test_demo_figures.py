"""What the demo promises, measured on a finished demo: `make demo OUT=demo`, then WSI_DEMO=demo pytest."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def evaluated() -> Path:
    if "WSI_DEMO" not in os.environ:
        pytest.skip("set WSI_DEMO to the folder of a finished demo")
    return Path(os.environ["WSI_DEMO"]) / "run" / "evaluate"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", ["abmil", "transmil"])
def test_slides_of_unseen_patients_are_told_apart(evaluated: Path, model: str) -> None:
    found = {(r["model"], r["metric"]): float(r["value"]) for r in rows(evaluated / "metrics.csv")}
    assert found[model, "auroc"] >= 0.9
    predictions = rows(evaluated.parent / "predict" / "predictions.csv")
    assert sum(p["model"] == model for p in predictions) == 24
    assert all(p["held_out"] == "true" for p in predictions)


def test_the_contribution_map_finds_the_annotated_tumour(evaluated: Path) -> None:
    maps = defaultdict(list)
    for row in rows(evaluated / "maps.csv"):
        maps[row["model"], row["method"]].append((float(row["auprc"]), float(row["base_rate"])))
    auprc, base_rate = np.mean(maps["abmil", "contribution"], axis=0)
    assert len(maps["abmil", "contribution"]) == 12
    assert auprc >= 0.6
    assert auprc >= 3 * base_rate


def test_every_slide_has_what_people_look_at(evaluated: Path) -> None:
    run = evaluated.parent
    assert len(list((run / "heatmap").glob("*.ome.zarr"))) == 24
    assert len(list((run / "view").glob("*.geojson"))) == 24
    assert (run / "report.html").stat().st_size < 20 * 2**20
    assert rows(run / "failures.csv") == []
