"""The measures of each task from its own columns: by hand, against libraries, or against loops of the definition."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, roc_auc_score

from wsi_pipeline.concordance import concordance
from wsi_pipeline.config import Config, EvaluateConfig
from wsi_pipeline.csvtable import csv_text
from wsi_pipeline.engine import Engine
from wsi_pipeline.errors import ArtifactError
from wsi_pipeline.evaluate.metrics import multilabel_metrics, regression_metrics
from wsi_pipeline.evaluate.predictions import read_predictions, scored
from wsi_pipeline.evaluate.ranking import auroc, average_precision, ranking, sensitivity_at
from wsi_pipeline.evaluate.summary import metric_name, summary_tables
from wsi_pipeline.evaluate.task_metrics import measures
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project
from wsi_pipeline.types import Bool, Float64, Int64, SlideRow

# --- one class against the rest ------------------------------------------------------------------------------


def sensitivity_by_loops(positive: Bool, score: Float64, specificity: float) -> float:
    """The highest over all thresholds with enough negatives below them."""
    best = 0.0
    for threshold in [*score, math.inf]:
        called = score >= threshold
        if sum(~called & ~positive) / sum(~positive) >= specificity - 1e-12:
            best = max(best, sum(called & positive) / sum(positive))
    return float(best)


@pytest.mark.parametrize("levels", [3, 10, 1000])
def test_ranking_measures_equal_those_of_scikit_learn_and_of_loops(levels: int) -> None:
    generator = np.random.default_rng(levels)
    positive = np.arange(60) < 25
    score = generator.integers(0, levels, 60) / levels + 0.2 * positive
    found = ranking(positive, score)
    assert auroc(found) == pytest.approx(roc_auc_score(positive, score))
    assert average_precision(found) == pytest.approx(average_precision_score(positive, score))
    for specificity in (0.05, 0.5, 0.8, 30 / 35, 0.95, 0.999):
        assert sensitivity_at(found, specificity) == sensitivity_by_loops(positive, score, specificity)


def test_sensitivity_at_a_specificity_computed_by_hand() -> None:
    found = ranking(np.array([1, 1, 1, 0, 0, 0, 0, 0], bool), np.array([0.9, 0.6, 0.2, 0.8, 0.4, 0.3, 0.1, 0.0]))
    assert [sensitivity_at(found, s) for s in (0.99, 0.8, 0.4, 0.39)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_without_positives_or_negatives_ranking_measures_are_undefined() -> None:
    for positive in (np.ones(3, bool), np.zeros(3, bool), np.zeros(0, bool)):
        found = ranking(positive, np.arange(len(positive)) / 3)
        assert all(math.isnan(value) for value in (auroc(found), average_precision(found), sensitivity_at(found, 0.9)))


# --- multilabel ----------------------------------------------------------------------------------------------


def test_multilabel_is_measured_class_by_class_and_averaged() -> None:
    generator = np.random.default_rng(2)
    truth = generator.random((50, 3)) < [0.5, 0.3, 0.6]
    predicted = np.clip(generator.random((50, 3)) + 0.3 * truth, 0, 1)
    found = multilabel_metrics(truth, predicted, predicted**2, ("er", "pr", "her2"), 10)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, predicted, average="macro"))
    assert found["auprc"] == pytest.approx(average_precision_score(truth, predicted, average="macro"))
    assert found["f1"] == pytest.approx(f1_score(truth, predicted >= 0.5, average="macro"))
    assert found["auroc[pr]"] == pytest.approx(roc_auc_score(truth[:, 1], predicted[:, 1]))
    assert found["f1[her2]"] == pytest.approx(f1_score(truth[:, 2], predicted[:, 2] >= 0.5))
    assert found["brier"] == pytest.approx(
        sum((predicted[i, c] - truth[i, c]) ** 2 for i in range(50) for c in range(3)) / 150
    )


def test_a_class_without_positives_leaves_its_own_measure_and_the_mean_undefined() -> None:
    truth = np.array([[True, False], [False, False]])
    found = multilabel_metrics(truth, np.array([[0.9, 0.1], [0.2, 0.3]]), truth * 1.0, ("a", "b"), 5)
    assert found["auroc[a]"] == 1.0
    assert [math.isnan(found[name]) for name in ("auroc", "auroc[b]", "f1[b]", "f1")] == [True] * 4


# --- regression ----------------------------------------------------------------------------------------------


def test_regression_measures_equal_those_of_libraries() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 9, 40).astype(float)
    value = truth + generator.normal(0, 2, 40).round()
    found = regression_metrics(truth, value)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, value))
    assert found["rmse"] == pytest.approx(math.sqrt(sum((a - b) ** 2 for a, b in zip(truth, value, strict=True)) / 40))
    assert found["r2"] == pytest.approx(r2_score(truth, value))
    assert found["pearson"] == pytest.approx(pearsonr(truth, value).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(truth, value).statistic)


def test_a_constant_prediction_of_the_mean_has_an_r2_of_zero_and_no_correlation() -> None:
    found = regression_metrics(np.array([1.0, 2.0, 3.0]), np.full(3, 2.0))
    assert [found["mae"], found["r2"]] == pytest.approx([2 / 3, 0])
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert math.isnan(regression_metrics(np.full(2, 1.0), np.array([1.0, 2.0]))["r2"])


# --- survival ------------------------------------------------------------------------------------------------


def concordance_by_loops(time: Float64, event: Bool, risk: Float64, ensemble: Int64) -> float:
    """Harrell et al. 1982, over all pairs."""
    right = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            first = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if event[i] and first and ensemble[i] == ensemble[j]:
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / pairs if pairs else math.nan


def test_concordance_equals_the_definition_over_all_pairs_with_ties_in_time_and_risk() -> None:
    generator = np.random.default_rng(7)
    for n in (2, 5, 40):
        for _ in range(10):
            time, event = generator.integers(1, 8, n).astype(float), generator.random(n) < 0.6
            risk = generator.integers(0, 6, n).astype(float)
            for ensemble in (np.zeros(n, np.int64), generator.integers(0, 3, n)):
                expected = concordance_by_loops(time, event, risk, ensemble)
                assert concordance(time, event, risk, ensemble) == pytest.approx(expected, nan_ok=True)
            of_all = concordance_by_loops(time, event, risk, np.zeros(n, np.int64))
            assert concordance(time, event, risk) == pytest.approx(of_all, nan_ok=True)


def test_a_higher_risk_predicts_an_earlier_event() -> None:
    time, event = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    assert concordance(time, event, np.array([3.0, 2.0, 1.0])) == 1.0
    assert concordance(time, event, np.array([1.0, 2.0, 3.0])) == 0.0
    assert concordance(time, event, np.zeros(3)) == 0.5


def test_risks_of_two_ensembles_are_not_compared() -> None:
    """The second ensemble's risks are all higher by 10; both ensembles rank perfectly."""
    time, event, risk = np.array([1.0, 3.0, 2.0, 4.0]), np.ones(4, bool), np.array([1.0, 0.0, 11.0, 10.0])
    assert concordance(time, event, risk, np.array([0, 0, 1, 1])) == 1.0
    assert concordance(time, event, risk) == pytest.approx(3 / 6)


def test_a_patient_censored_before_all_events_is_in_no_pair() -> None:
    assert math.isnan(concordance(np.array([1.0, 2.0]), np.array([False, True]), np.array([0.0, 1.0])))


# --- files ---------------------------------------------------------------------------------------------------

BEFORE = {"multilabel": ["label"], "regression": ["label"], "survival": ["label", "time", "event"]}
OUTCOMES = {
    "multilabel": ["prob_er", "prob_pr", "calibrated_er", "calibrated_pr", "entropy", "aleatoric", "epistemic"],
    "regression": ["value", "epistemic"],
    "survival": ["risk", "epistemic"],
}
Rows = Sequence[tuple[str, str, list[Any], list[Any]]]


def write(root: Path, task: str, rows: Rows) -> None:
    """predictions.csv and patients.csv; rows: slide, patient, truth, prediction."""
    folder = root / "predict"
    folder.mkdir(exist_ok=True)
    columns = ["model", "task", "members", "weights", "held_out", "threshold", "predicted"]
    cells = ["abmil", task, 5, "w", "true", "", ""]
    header = ["slide_id", "patient_id", *BEFORE[task], "split", *columns, *OUTCOMES[task]]
    (folder / "predictions.csv").write_text(csv_text(header, [[s, p, *t, "", *cells, *o] for s, p, t, o in rows]))
    header = ["patient_id", "slides", *BEFORE[task], *columns, *OUTCOMES[task]]
    first = {p: (t, o) for _, p, t, o in reversed(rows)}
    (folder / "patients.csv").write_text(csv_text(header, [[p, 1, *t, *cells, *o] for p, (t, o) in first.items()]))


def evaluate(root: Path, rows: Rows) -> dict[str, Any]:
    slides = tuple(SlideRow(s, root / "x.tif", patient_id=p) for s, p, _, _ in rows)
    data = {"slides": "m.csv", "out": root, "evaluate": {"bootstrap": 40}}
    project = Project(Config.model_validate(data), slides, slides)
    with Engine(project.config.engine, root) as engine:
        run_stage("evaluate", project, engine)
        assert engine.failures == []
    report: dict[str, Any] = json.loads((root / "evaluate" / "report.json").read_text())
    return report


def test_multilabel_is_evaluated_from_its_columns(tmp_path: Path) -> None:
    true = ["er;pr", "-", "pr", "er", " er ; pr", "-"]
    predicted = [(0.9, 0.8), (0.2, 0.6), (0.4, 0.7), (0.6, 0.1), (0.3, 0.9), (0.1, 0.2)]
    rows = [(f"s{i}", f"p{i}", [t], [*p, *p, "", "", ""]) for i, (t, p) in enumerate(zip(true, predicted, strict=True))]
    write(tmp_path, "multilabel", [*rows, ("s6", "p6", ["er;cyst"], [0.5, 0.5, 0.5, 0.5, "", "", ""])])
    report = evaluate(tmp_path, [*rows, ("s6", "p6", [], [])])
    found = report["models"]["abmil"]
    assert found["n_per_class"] == {"er": 3, "pr": 3}
    assert found["metrics"]["auroc[er]"]["value"] == pytest.approx(8 / 9, abs=1e-6)  # .3 below .4
    assert found["metrics"]["auroc[pr]"]["value"] == 1.0
    assert found["metrics"]["auroc"]["value"] == pytest.approx(17 / 18, abs=1e-6)
    assert "delong" in found["metrics"]["auroc[er]"]
    assert "delong" not in found["metrics"]["auroc"]
    assert report["notes"][0] == "abmil: 1 of its slides left out: the label 'cyst' is not a class of the model"
    drawn = {p.name for p in (tmp_path / "evaluate").glob("*.png")}
    assert drawn == {"roc.png", "pr.png", "reliability.png"}


def test_regression_is_evaluated_from_its_columns(tmp_path: Path) -> None:
    rows: Rows = [(f"s{i}", f"p{i // 2}", [t], [v, 0.1]) for i, (t, v) in enumerate([(1, 2), (3, 3), (5, 4.5), (8, 9)])]
    write(tmp_path, "regression", [*rows, ("s4", "p4", ["high"], [1.0, 0.1])])
    report = evaluate(tmp_path, [*rows, ("s4", "p4", [], [])])
    assert report["models"]["abmil"]["metrics"]["mae"]["value"] == pytest.approx(2.5 / 4)
    assert report["patients"]["abmil"]["n_patients"] == 2
    assert "n_slides" not in report["patients"]["abmil"]
    assert report["patients"]["abmil"]["metrics"]["mae"]["value"] == pytest.approx(1.5 / 2)
    assert "abmil: 1 of its slides left out: the label 'high' is not a number" in report["notes"]
    assert [p.name for p in (tmp_path / "evaluate").glob("*.png")] == ["scatter.png"]


def test_survival_is_evaluated_from_its_columns(tmp_path: Path) -> None:
    follow_up = [(1, 1, 2.0), (2, 1, 0.5), (3, 0, 1.0), (4, 1, -1.0)]
    rows: Rows = [(f"s{i}", f"p{i}", ["", t, e], [r, 0.1]) for i, (t, e, r) in enumerate(follow_up)]
    write(tmp_path, "survival", [*rows, ("s4", "p4", ["", "", ""], [1.0, 0.1])])
    report = evaluate(tmp_path, [*rows, ("s4", "p4", [], [])])
    found = report["models"]["abmil"]
    # s0 before all three; s1 before s2 (wrong) and s3; s2 was censored.
    assert found["metrics"]["concordance"]["value"] == pytest.approx(4 / 5)
    assert (found["n_slides"], found["n_events"]) == (4, 3)
    assert "abmil: 1 of its slides left out: no time or event in the manifest" in report["notes"]
    with (tmp_path / "evaluate" / "metrics.csv").open() as file:
        assert [row["metric"] for row in csv.DictReader(file)] == ["concordance"]


def test_the_error_for_predictions_of_an_earlier_version_suggests_predict(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    with pytest.raises(ArtifactError, match=r"does not exist; run `wsi predict` first"):
        read_predictions(path)
    old = "slide_id,patient_id,label,split,model,members,weights,held_out,threshold,predicted,prob_a,prob_b"
    path.write_text(f"{old}\ns,p,a,,abmil,5,w,true,0.5,a,0.6,0.4\n")
    with pytest.raises(ArtifactError, match=r"no column 'task'; delete it and run `wsi predict` again"):
        read_predictions(path)
    path.write_text(f"{old},task\ns,p,a,,abmil,5,w,true,0.5,a,0.6,0.4,classification\n")
    with pytest.raises(ArtifactError, match=r"no column 'set'; delete it"):
        read_predictions(path)
    path.write_text(f"{old},task,set\ns,p,a,,abmil,5,w,true,0.5,a,0.6,0.4,classification,a\n")
    with pytest.raises(
        ArtifactError, match=r"prob_… and calibrated_… do not have the same classes.*`wsi predict` again"
    ):
        read_predictions(path)
    path.write_text(f"{old},task,set\ns,p,a,,abmil,5,w,true,0.5,a,0.6,0.4,reading,a\n")
    with pytest.raises(ArtifactError, match=r"unknown task 'reading'"):
        read_predictions(path)


def test_of_three_classes_each_has_its_own_auroc_and_interval(tmp_path: Path) -> None:
    generator, names = np.random.default_rng(0), "abc"
    kinds = [f"{kind}_{c}" for kind in ("prob", "calibrated") for c in names]
    header = ["slide_id", "patient_id", "label", "model", "task", "weights", "held_out", "threshold", "predicted"]
    lines = []
    for i in range(30):
        p = generator.dirichlet(np.ones(3) + 2 * np.eye(3)[i % 3]).round(6)
        lines.append([f"s{i}", f"p{i}", names[i % 3], "abmil", "classification", "w", "true", "", "", *p, *p, "a;b"])
    path = tmp_path / "predictions.csv"
    path.write_text(csv_text([*header, *kinds, "set"], lines))
    model = scored(read_predictions(path), "abmil")
    assert model is not None
    assert model.sets.tolist() == [[True, True, False]] * 30
    found = measures(model, EvaluateConfig(bootstrap=20, specificity=(0.8, 0.95)))
    assert found["auroc"].interval.value == pytest.approx(np.mean([found[f"auroc[{c}]"].interval.value for c in names]))
    assert found["auroc"].delong is None
    delong = found["auroc[b]"].delong
    assert delong is not None
    assert delong[0] < found["auroc[b]"].interval.value < delong[1]
    assert found["sensitivity_at_0.8"].interval.value >= found["sensitivity_at_0.95"].interval.value
    assert found["coverage"].interval.value == pytest.approx(2 / 3)


# --- the summary at the end -------------------------------------------------------------------------------------


def test_measures_have_display_names() -> None:
    assert metric_name("auroc[her2]") == "AUROC, her2"
    assert metric_name("sensitivity_at_0.95") == "Sensitivity at specificity 0.95"
    assert metric_name("something new") == "something new"


def shown(report: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(width=200, file=text).print(*summary_tables(report))
    return text.getvalue()


def test_the_summary_has_a_row_per_model_patients_seeds_and_maps() -> None:
    def model(value: float, slides: int) -> dict[str, Any]:
        auroc = {"value": value, "low": value - 0.1, "high": 1.0}
        return {"n_slides": slides, "n_patients": 4, "metrics": {"auroc": auroc, "f1": {"value": None}}}

    models = {"abmil": model(0.9, 9), "[red]clam": model(0.8, 9)}
    seeds = [{"model": "abmil", "metric": "auroc", "mean": 0.85, "sd": 0.05, "values": {"0": 0.8, "1": 0.9}}]
    one_map = {name: {"value": 3.0, "low": 2.0, "high": 4.0} for name in ("auprc", "base_rate", "lift")}
    maps = [{"model": "abmil", "method": "attention", "target": "-", "n_slides": 3, **one_map}]
    text = shown({"models": models, "patients": {"abmil": model(0.7, 4)}, "seeds": seeds, "maps": maps})
    for part in (
        "[red]clam",
        "0.900 ",
        "0.80–1.00",
        "0.70–1.00",
        "9 slides",
        "4 patients",
        "AUROC, 2 seeds",
        "0.850 ± 0.050",
        "attention",
        "3.000 ",
        "2.00–4.00",
    ):
        assert part in text
    alone = shown({"models": {"abmil": model(0.9, 4)}, "patients": {"abmil": model(0.9, 4)}})
    assert "4 patients" not in alone
