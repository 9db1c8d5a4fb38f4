"""Comparison of two runs on the same slides: differences are detected, equality too, and misuse is one line."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wsi_pipeline.artifacts import Provenance, write_provenance
from wsi_pipeline.csvtable import csv_text
from wsi_pipeline.errors import ArtifactError, ConfigError
from wsi_pipeline.evaluate.bootstrap import p_value
from wsi_pipeline.evaluate.compare import COLUMNS, Comparison, compare_runs, comparison_table, write_comparison
from wsi_pipeline.evaluate.delong import areas, difference

PREDICTION_COLUMNS = [
    "model",
    "task",
    "weights",
    "held_out",
    "threshold",
    "predicted",
    "prob_n",
    "prob_t",
    "calibrated_n",
    "calibrated_t",
]
N = 60
LABELS = ["t" if i % 2 else "n" for i in range(N)]


def predicted(seed: int, skill: float) -> list[float]:
    """Probabilities of t with noise that runs share in part, so that they are paired."""
    common = np.random.default_rng(0).standard_normal(N)
    own = np.random.default_rng(seed).standard_normal(N)
    sign = np.array([1 if label == "t" else -1 for label in LABELS])
    scores = 1 / (1 + np.exp(-(skill * sign + common + 0.3 * own)))
    return [float(p) for p in scores.round(6)]


def write_run(root: Path, models: dict[str, list[float]], per_patient: int = 1, **change: Any) -> Path:
    """``change``: ``labels``, ``names`` of the slides, ``held_out`` of slide i."""
    labels, names = change.get("labels", LABELS), change.get("names", [f"s{i}" for i in range(N)])
    held_out = change.get("held_out", lambda i: True)
    (root / "predict").mkdir(parents=True)
    (root / "config.yaml").write_text(f"slides: m.csv\nout: {root}\nevaluate: {{bootstrap: 200}}\n")
    slides, patients = [], []
    for model, probabilities in models.items():
        for i, p in enumerate(probabilities):
            pair = [f"{1 - p:.6f}", f"{p:.6f}"]
            cells = [labels[i], model, "classification", "w", str(held_out(i)).lower(), "0.5", "", *pair, *pair, "t"]
            slides.append([names[i], f"p{i // (2 * per_patient)}_{labels[i]}", *cells])
            if i // 2 % per_patient == 0:
                patients.append([slides[-1][1], per_patient, *cells])
    rest = ["label", *PREDICTION_COLUMNS, "set"]
    (root / "predict" / "predictions.csv").write_text(csv_text(["slide_id", "patient_id", *rest], slides))
    (root / "predict" / "patients.csv").write_text(csv_text(["patient_id", "slides", *rest], patients))
    return root


def by_metric(found: list[Comparison]) -> dict[str, Comparison]:
    return {one.metric: one for one in found}


def test_a_better_model_has_higher_measures(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"abmil": predicted(1, 0.3)})
    b = write_run(tmp_path / "b", {"abmil": predicted(2, 1.5)})
    found = by_metric(compare_runs(a, b))
    for metric in ("auroc", "auprc", "accuracy", "balanced_accuracy", "f1"):
        one = found[metric]
        assert one.difference == pytest.approx(one.b - one.a)
        assert 0 < one.low < one.difference < one.high
        assert one.p < 0.02
        assert (one.n, one.n_patients, one.level) == (N, N, "slides")
    assert {one.method for one in found.values() if one.metric == "auroc"} == {"DeLong"}
    assert {one.method for one in found.values() if one.metric != "auroc"} == {"bootstrap"}


def test_auroc_is_tested_by_delong_on_the_paired_scores(tmp_path: Path) -> None:
    scores = [predicted(1, 0.6), predicted(2, 0.8)]
    a, b = (write_run(tmp_path / name, {"abmil": s}) for name, s in zip("ab", scores, strict=True))
    positive = np.array([label == "t" for label in LABELS])
    expected = difference(areas(positive, np.array(scores), [f"p{i}" for i in range(N)]))
    one = by_metric(compare_runs(a, b))["auroc"]
    assert (one.difference, one.low, one.high, one.p) == pytest.approx(tuple(expected))


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"abmil": predicted(1, 0.6), "clam": predicted(2, 0.6)})
    found = compare_runs(a, a)
    assert [one.model_a for one in found] == sorted(one.model_a for one in found)
    assert {one.model_b for one in found} == {"abmil", "clam"}
    assert all(one.difference == 0 and one.p == 1 for one in found if not math.isnan(one.difference))


def test_two_models_of_one_run_are_compared_by_name(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"abmil": predicted(1, 0.2), "clam": predicted(2, 1.5)})
    found = by_metric(compare_runs(a, a, model_a="abmil", model_b="clam"))
    back = by_metric(compare_runs(a, a, model_a="clam", model_b="abmil"))
    assert found["auroc"].difference == pytest.approx(-back["auroc"].difference)
    assert found["auroc"].p == pytest.approx(back["auroc"].p)
    assert (found["f1"].low, found["f1"].high) == pytest.approx((-back["f1"].high, -back["f1"].low))


def test_only_slides_held_out_in_both_runs_are_used_in_any_order(tmp_path: Path) -> None:
    scores = predicted(1, 0.6)
    a = write_run(tmp_path / "a", {"abmil": scores}, held_out=lambda i: i >= 10)
    b = write_run(tmp_path / "b", {"abmil": scores}, held_out=lambda i: i < 50)
    lines = (b / "predict" / "predictions.csv").read_text().splitlines()
    (b / "predict" / "predictions.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    one = by_metric(compare_runs(a, b))["auroc"]
    assert (one.n, one.difference, one.p) == (40, 0, 1)


def test_patients_are_compared_too_where_they_have_several_slides(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n, {"abmil": predicted(i, 0.5 + i)}, per_patient=3) for i, n in enumerate("ab"))
    found = compare_runs(a, b)
    assert list(dict.fromkeys((one.level, one.n, one.n_patients) for one in found)) == [
        ("slides", 60, 20),
        ("patients", 20, 20),
    ]


def test_runs_that_cannot_be_compared_give_an_error_of_one_line(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"abmil": predicted(1, 0.6)})
    others = write_run(tmp_path / "others", {"abmil": predicted(1, 0.6)}, names=[f"t{i}" for i in range(N)])
    with pytest.raises(ArtifactError, match=r"abmil: no slide is labelled and held out in both .* of one manifest"):
        compare_runs(a, others)
    labels = write_run(tmp_path / "labels", {"abmil": predicted(1, 0.6)}, labels=["t", *LABELS[1:]])
    with pytest.raises(ArtifactError, match=r"the labels of slide 's0' differ between .*; predict both with one"):
        compare_runs(a, labels)
    clam = write_run(tmp_path / "clam", {"clam": predicted(1, 0.6)})
    with pytest.raises(ConfigError, match=r"share no model; name two with --model A --model-b B"):
        compare_runs(a, clam)
    with pytest.raises(ConfigError, match=r"clam has no model 'abmil'; it has clam"):
        compare_runs(a, clam, model_a="abmil")
    with pytest.raises(ConfigError, match="--model-b needs --model"):
        compare_runs(a, clam, model_b="clam")
    with pytest.raises(ArtifactError, match="is not a run folder"):
        compare_runs(tmp_path, a)
    text = (clam / "predict" / "predictions.csv").read_text().replace("_t", "_u").replace(",t,", ",u,")
    (clam / "predict" / "predictions.csv").write_text(text)
    with pytest.raises(ArtifactError, match=r"classification of n, t, but .* classification of n, u; compare runs of"):
        compare_runs(a, clam, model_a="abmil", model_b="clam")
    (clam / "predict" / "patients.csv").unlink()
    with pytest.raises(ArtifactError, match=r"patients\.csv does not exist; run `wsi predict` first"):
        compare_runs(a, clam)


def test_a_run_of_another_schema_is_refused(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, {"abmil": predicted(1, 1.0)}) for name in ("a", "b"))
    write_provenance(b / "predict" / "predictions.csv", Provenance("k", {}, schema=1))
    with pytest.raises(ArtifactError, match="was written with schema 1, this version reads 2"):
        compare_runs(a, b)


def test_the_table_and_the_csv_have_the_same_numbers(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n, {"abmil": predicted(i, 0.5 + i)}) for i, n in enumerate("ab"))
    found = compare_runs(a, b)
    text = io.StringIO()
    Console(width=220, file=text).print(comparison_table(found, ("[run a]", "run b")))
    write_comparison(tmp_path / "compare.csv", found)
    with (tmp_path / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    auroc = next(row for row in rows if row["metric"] == "auroc")
    assert float(auroc["difference"]) == pytest.approx(by_metric(found)["auroc"].difference, abs=1e-6)
    assert (auroc["method"], auroc["level"], auroc["n"], auroc["model_b"]) == ("DeLong", "slides", "60", "abmil")
    one = by_metric(found)["auroc"]
    line = next(line for line in text.getvalue().splitlines() if "AUROC" in line)
    for part in (
        "60 slides",
        f"{one.a:.3f}",
        f"{one.b:.3f}",
        f"{one.difference:+.3f} ({one.low:+.3f} to",
        f"{one.p:.3f}",
    ):
        assert part in line
    assert "[run a]" in text.getvalue()


def test_the_p_value_counts_the_resamples_on_the_other_side_of_zero() -> None:
    assert p_value(np.arange(1.0, 100.0)) == 2 / 100
    assert p_value(np.array([-1.0, 1.0, 1.0, np.nan])) == 1.0
    assert p_value(np.append(np.full(9, -0.1), np.full(190, 0.1))) == pytest.approx(2 * 10 / 200)
    assert p_value(np.zeros(50)) == 1.0
    assert math.isnan(p_value(np.full(3, np.nan)))
