"""The classic data sets: bags from a CSV, accuracy over repeats, and the workflow that trains on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from test_workflows import WORKFLOWS, counts, snakemake

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.project import read_manifest
from wsi_pipeline.store import read_bag
from wsi_pipeline.studies.classic_mil import accuracies, accuracy_table, read_bags, write_study


def planted_set(path: Path, bags: int = 24) -> Path:
    """Bags of two to five instances in five dimensions; in a positive bag one is an outlier in the first."""
    generator = np.random.default_rng(0)
    lines = []
    for bag in range(1, bags + 1):
        features = generator.standard_normal((int(generator.integers(2, 6)), 5))
        features[0, 0] += 8 * (bag % 2)
        lines += [f"{bag % 2},{bag}," + ",".join(f"{v:.4f}" for v in row) for row in features]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_becomes_bags_of_standardised_features(tmp_path: Path) -> None:
    (tmp_path / "toy.csv").write_text("1,7,0,5\n1,7,4,5\n0,2,2,5\n")
    assert write_study(tmp_path / "toy.csv", tmp_path / "run") == 2
    rows = read_manifest(tmp_path / "run" / "slides.csv")
    assert [(r.slide_id, r.label) for r in rows] == [("toy_0002", "negative"), ("toy_0007", "positive")]
    bag = read_bag(tmp_path / "run" / "embed" / "toy_0007.h5")
    spread = float(np.std([0, 4, 2]))
    np.testing.assert_allclose(bag.features, [[-2 / spread, 0], [2 / spread, 0]], atol=1e-6)  # constant features are 0
    assert bag.grid.xy_px0.tolist() == [[0, 0], [1, 0]]
    assert bag.encoder == "toy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1,2,3\n1,1,2\n", "line 2: 1 features"),
        ("1,1,2,3\n0,1,2,3\n", "line 2: bag 1 has two labels"),
        ("1,one,2\n", "a cell is not a number"),
        ("", "has no instances"),
    ],
)
def test_an_invalid_set_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_bags(tmp_path / "bad.csv")
    with pytest.raises(ConfigError, match="cannot read"):
        read_bags(tmp_path / "none.csv")


def test_the_real_sets_have_the_published_sizes(shared_data: Path) -> None:
    for name, bags, positive, instances, dim in (("musk1", 92, 47, 476, 166), ("elephant", 200, 100, 1391, 230)):
        found = read_bags(shared_data / "mil" / f"{name}.csv")
        assert (len(found), sum(b.positive for b in found)) == (bags, positive)
        assert (sum(len(b.features) for b in found), found[0].features.shape[1]) == (instances, dim)


def test_accuracy_is_over_all_folds_of_a_repeat(tmp_path: Path) -> None:
    lines = ["model,seed,fold,slide_id,patient_id,label,part,prob_negative,prob_positive"]
    lines += [f"m,{seed},{fold},s,s,positive,test,0.5,{p}" for seed, fold, p in ((0, 0, 0.5), (0, 1, 0.4), (1, 0, 0.9))]
    lines += ["m,0,0,v,v,negative,val,0.9,0.1"]
    path = tmp_path / "train" / "predictions.csv"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    assert accuracies(path) == {"m": [0.5, 1.0]}
    assert accuracies(path, "val") == {"m": [1.0]}
    table = accuracy_table({"toy": tmp_path}, {"m": {"toy": 0.9}})
    assert table.splitlines()[2] == "| m | 0.750 ± 0.354 | 0.900 |"


def test_the_graph_is_built_without_data(tmp_path: Path) -> None:
    done = snakemake("classic_mil", tmp_path, "-n")
    assert done.returncode == 0, done.stderr
    found = counts(done.stdout + done.stderr)
    assert found == {"accuracy": 1, "all": 1, "bags": 2, "config_of": 2, "train": 2, "total": 8}


@pytest.mark.slow
def test_a_miniature_set_runs_completely_and_is_learnt(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    planted_set(tmp_path / "data" / "toy.csv")
    config = {
        "data": "data",
        "out": "out",
        "sets": ["toy"],
        "workers": 1,
        "train": {"folds": 2, "seeds": [0, 1], "epochs": 20, "keep": "last", "lr": 5e-3},
        "models": [{"name": "abmil", "options": {"hidden": 16, "attention_dim": 8}}],
        "published": {},
    }
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("classic_mil", tmp_path, "--configfile", "mini.yaml", "--cores", 1)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "out" / "accuracy.md").read_text().splitlines()[2:]
    assert line.startswith("| abmil | ")
    assert float(line.split("|")[2].split("±")[0]) > 0.8
    assert (WORKFLOWS / "classic_mil" / "Snakefile").is_file()
