"""The evaluate stage on a small run folder: measures, notes on what cannot be measured, and when it is recomputed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_pipeline.artifacts import Provenance, write_provenance
from wsi_pipeline.config import Config
from wsi_pipeline.csvtable import csv_text
from wsi_pipeline.engine import Engine
from wsi_pipeline.errors import ArtifactError
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.predict import weights_id
from wsi_pipeline.project import Project
from wsi_pipeline.store import write_explanations
from wsi_pipeline.types import Explanation, PatchGrid, SlideRow

COLUMNS = ["slide_id", "patient_id", "label", "split", "model", "task", "members", "weights"]
COLUMNS += ["held_out", "threshold", "predicted", "prob_normal", "prob_tumour", "calibrated_normal"]
COLUMNS += ["calibrated_tumour", "entropy", "aleatoric", "epistemic", "set"]
PATIENT_COLUMNS = ["patient_id", "slides", "label", *COLUMNS[4:]]
METRICS = ["auroc", "auprc", "balanced_accuracy", "f1", "accuracy", "sensitivity_at_0.95"]
METRICS += ["ece", "ece_calibrated", "brier", "brier_calibrated", "aurc", "aurc_calibrated"]
METRICS += ["coverage", "set_size", "abstained", "accuracy_not_abstained"]
# slide, patient, label, probability of tumour; the two models predict the same
COHORT = [
    *[("s0", "p0", "normal", 0.1), ("s1", "p0", "normal", 0.6), ("s2", "p1", "normal", 0.2)],
    *[("s3", "p2", "tumour", 0.55), ("s4", "p3", "tumour", 0.9), ("s5", "p4", "tumour", 0.8)],
]
GRID_SIDE = 6  # patches per side, 10 level-0 pixels each


def prediction_cells(q: float) -> list[str]:
    """The cells from threshold to set for a probability ``q`` of tumour; calibration halves its distance from 0.5."""
    softer = (q + 0.5) / 2
    in_set = ";".join([*(["normal"] if q < 0.65 else []), *(["tumour"] if q > 0.35 else [])])
    return ["0.500000", "", *(f"{p:.6f}" for p in (1 - q, q, 1 - softer, softer)), "", "", "", in_set]


class Study:
    """A run folder with predictions by two models and, for the tumour slides, a map and an annotation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slides = {
            slide_id: SlideRow(slide_id, root / "x.tif", patient_id=patient, label=label)
            for slide_id, patient, label, _ in COHORT
        }
        self.predict([[*row, model, "true"] for row in COHORT for model in ("abmil", "transmil")])
        self.annotate("s3", [(0, 0, 20, 10)], hole=(11, 0, 13, 10))  # patches 0 and, for 8/10, 1
        self.annotate("s4", [(0, 0, 10, 4)])  # four tenths of patch 0
        self.explain("s3", "abmil", "attention", [0.9, 0.1, 0.5], unit="attention")
        self.explain("s3", "abmil", "contribution", [0.9, 0.8, 0.5])
        self.explain("s4", "abmil", "contribution", [0.9, 0.8, 0.5])

    def predict(self, rows: Sequence[Sequence[Any]], key: str = "predictions") -> None:
        """Rows: slide, patient, label, probability of tumour, model, held_out."""
        cells = [[s, p, y, m, held, *prediction_cells(q)] for s, p, y, q, m, held in rows]
        slides = [[s, p, y, "", m, "classification", 1, weights_id(["w1"]), *rest] for s, p, y, m, *rest in cells]
        self.write("predictions.csv", COLUMNS, slides, key)
        of_patients: dict[tuple[str, str], list[Sequence[Any]]] = {}
        for row in rows:
            of_patients.setdefault((row[1], row[4]), []).append(row)
        patients = []
        for (p, m), own in of_patients.items():
            labels = {y for _, _, y, _, _, _ in own}
            label, held = labels.pop() if len(labels) == 1 else "", own[0][5]
            mean = prediction_cells(float(np.mean([q for _, _, _, q, _, _ in own])))
            patients.append([p, len(own), label, m, "classification", 1, weights_id(["w1"]), held, *mean])
        self.write("patients.csv", PATIENT_COLUMNS, patients, key)

    def write(self, name: str, columns: Sequence[str], lines: Sequence[Sequence[Any]], key: str) -> None:
        path = self.root / "predict" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(csv_text(columns, lines))
        write_provenance(path, Provenance.of(f"{key} {name}", "predict"))

    def annotate(
        self, slide_id: str, boxes: Sequence[tuple[int, int, int, int]], hole: tuple[int, int, int, int] | None = None
    ) -> None:
        """GeoJSON with tumour boxes (left, top, right, bottom) and one that is excluded."""
        named = [("Tumour", b) for b in boxes] + ([("Exclusion", hole)] if hole else [])
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[x, y], [u, y], [u, v], [x, v], [x, y]]]},
                "properties": {"classification": {"name": name}},
            }
            for name, (x, y, u, v) in named
        ]
        path = self.root / f"{slide_id}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        self.slides[slide_id] = SlideRow(**{**vars(self.slides[slide_id]), "annotation": path})

    def explain(self, slide_id: str, model: str, method: str, first: Sequence[float], **what: Any) -> None:
        """A map whose first patches have these scores, and whose others have 0."""
        n = GRID_SIDE**2
        index = np.arange(n)
        side = what.get("side", 10)  # of a patch, px0
        grid = PatchGrid(
            slide_id=slide_id,
            xy_px0=np.stack([index % GRID_SIDE * side, index // GRID_SIDE * side], axis=1).astype(np.int64),
            side_px=10,
            side_px0=(side, side),
            stride_px0=(side, side),
            target_mpp=1.0,
            mpp=(1.0, 1.0),
            slide_size_px0=(GRID_SIDE * side, GRID_SIDE * side),
            bounds_px0=(0, 0, GRID_SIDE * side, GRID_SIDE * side),
        )
        scores = np.zeros(n, np.float32)
        scores[: len(first)] = first
        path = self.root / "explain" / model / method / f"{slide_id}.h5"
        unit = what.get("unit", "attribution")
        explanation = Explanation(grid, scores, method, model, "tumour", unit, unit == "attribution")
        members = [[what.get("weights", "w1"), "abmil", {}, []]]
        write_explanations(path, [explanation], Provenance.of(f"{first}", "explain", members=members))

    def run(self, **evaluate: Any) -> dict[str, Any]:
        """Evaluate; returns report.json."""
        data = {"slides": "m.csv", "out": self.root, "evaluate": {"bootstrap": 50, **evaluate}}
        slides = tuple(self.slides.values())
        project = Project(Config.model_validate(data), slides, slides)
        with Engine(project.config.engine, self.root) as engine:
            run_stage("evaluate", project, engine)
            assert engine.failures == []
        report: dict[str, Any] = json.loads((self.root / "evaluate" / "report.json").read_text())
        return report

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.root / "evaluate" / name).open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotting takes most of the time of this stage; tests that are not about plots replace it."""
    if "drawn" not in request.fixturenames:
        stub = {"roc.png": b"a plot"}
        monkeypatch.setattr("wsi_pipeline.evaluate.stage.pictures", lambda models, bins: stub)


@pytest.fixture
def drawn() -> None:
    """Requested by tests that need the plots themselves."""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    folder = root / "evaluate"
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*.*") if p.is_file()
    }


# --- predictions ---------------------------------------------------------------------------------------------


def test_every_model_has_every_metric_with_its_interval(study: Study) -> None:
    report = study.run()
    rows = study.rows("metrics.csv")
    assert [(r["model"], r["metric"]) for r in rows] == [
        (model, metric) for model in ("abmil", "transmil") for metric in METRICS
    ]
    assert {(r["n_slides"], r["n_patients"]) for r in rows} == {("6", "5")}
    auroc = rows[0]
    assert float(auroc["value"]) == pytest.approx(8 / 9, abs=1e-6)  # 0.6 and 0.55 are in the wrong order
    assert float(auroc["low"]) <= float(auroc["value"]) <= float(auroc["high"]) <= 1
    model = report["models"]["abmil"]
    assert model["classes"] == ["normal", "tumour"]
    assert model["n_per_class"] == {"normal": 3, "tumour": 3}
    assert model["metrics"]["accuracy"]["value"] == pytest.approx(5 / 6, abs=1e-6)
    assert 0 < model["metrics"]["auroc"]["resamples"] < model["metrics"]["accuracy"]["resamples"] == 50


def test_slides_seen_in_training_or_without_label_are_not_used(study: Study) -> None:
    seen = [[*row, "abmil", "false" if row[0] in ("s1", "s3") else "true"] for row in COHORT]
    study.predict([*seen, ["s6", "p6", "", 0.4, "abmil", "true"], ["s7", "p7", "cyst", 0.4, "abmil", "true"]])
    for slide_id in ("s6", "s7"):
        study.slides[slide_id] = SlideRow(slide_id, study.root / "x.tif")
    report = study.run()
    assert report["models"]["abmil"]["n_slides"] == 4
    assert report["models"]["abmil"]["metrics"]["auroc"]["value"] == 1.0
    assert report["notes"][:3] == [
        "abmil: 2 of its slides left out: every member was trained on the patient",
        "abmil: 1 of its slides left out: no label in the manifest",
        "abmil: 1 of its slides left out: the label 'cyst' is not a class of the model",
    ]


def test_the_report_of_a_run_without_labels_notes_it(study: Study, drawn: None) -> None:
    study.predict([[slide, patient, "", q, "abmil", "true"] for slide, patient, _, q in COHORT])
    report = study.run()
    assert report["models"] == {}
    assert "abmil: no labelled, held-out slide, so no metrics" in report["notes"]
    assert study.rows("metrics.csv") == []
    assert not (study.root / "evaluate" / "roc.png").exists()


def test_with_a_single_class_measures_that_need_both_are_not_reported(study: Study) -> None:
    study.predict([[*row, "abmil", "true"] for row in COHORT if row[2] == "tumour"])
    report = study.run()
    metrics = report["models"]["abmil"]["metrics"]
    assert metrics["accuracy"]["value"] == metrics["coverage"]["value"] == 1.0
    assert metrics["auroc"] == {"value": None, "low": None, "high": None, "resamples": 0}
    assert "abmil: no slide of class normal, so no metric that needs every class" in report["notes"]
    assert study.rows("metrics.csv")[0]["value"] == ""


def test_slides_removed_from_the_manifest_are_not_used(study: Study) -> None:
    del study.slides["s1"]
    assert study.run()["models"]["abmil"]["metrics"]["auroc"]["value"] == 1.0


def test_the_error_without_predictions_has_a_remedy(study: Study) -> None:
    (study.root / "predict" / "predictions.csv").unlink()
    with pytest.raises(ArtifactError, match="run `wsi predict` first"):
        study.run()


# --- maps ----------------------------------------------------------------------------------------------------


def test_maps_are_compared_with_the_annotation_without_its_exclusions(study: Study) -> None:
    report = study.run()
    attention, contribution = study.rows("maps.csv")
    assert [attention[c] for c in ("slide_id", "model", "method", "target")] == ["s3", "abmil", "attention", "tumour"]
    assert (attention["n_patches"], attention["n_positive"], attention["held_out"]) == ("36", "2", "true")
    assert float(attention["auprc"]) == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert float(attention["base_rate"]) == pytest.approx(2 / 36, abs=1e-6)
    assert float(attention["lift"]) == pytest.approx((1 + 2 / 3) / 2 * 18, abs=1e-5)
    assert float(attention["auroc"]) == pytest.approx(67 / 68, abs=1e-6)
    assert (contribution["method"], contribution["auprc"]) == ("contribution", "1.000000")
    assert report["maps_left_out"] == {"no annotation": 4, "no patch inside the annotation": 1}
    means = {(m["model"], m["method"], m["target"]): m for m in report["maps"]}
    assert means["abmil", "attention", "tumour"]["auprc"]["value"] == pytest.approx(5 / 6, abs=1e-6)
    assert means["abmil", "attention", "tumour"]["n_slides"] == 1


def test_the_mean_of_a_channel_is_over_slides_with_an_interval_over_patients(study: Study) -> None:
    study.annotate("s4", [(0, 0, 10, 10)])
    study.explain("s4", "abmil", "contribution", [0.1, 0.8, 0.5])
    mean = next(m for m in study.run()["maps"] if m["method"] == "contribution")
    assert mean["n_slides"] == 2
    assert mean["auprc"] == {"value": round((1 + 1 / 3) / 2, 6), "low": round(1 / 3, 6), "high": 1.0, "resamples": 50}


def test_maps_of_slides_seen_in_training_are_listed_but_not_in_the_means(study: Study) -> None:
    study.predict([[*row, "abmil", "false" if row[0] == "s3" else "true"] for row in COHORT])
    report = study.run()
    assert [row["held_out"] for row in study.rows("maps.csv")] == ["false", "false"]
    assert report["maps"] == []
    assert "maps: 1 annotated slides were used in training; they are in maps.csv, not in the means" in report["notes"]


def test_only_the_configured_annotation_classes_count_as_tumour(study: Study) -> None:
    assert study.run(tumour_classes=["Stroma"])["maps_left_out"]["no patch inside the annotation"] == 2
    assert len(study.run(tumour_classes=["tumour"])["maps"]) == 2


def test_an_unreadable_annotation_is_reported_and_the_others_are_used(study: Study) -> None:
    study.annotate("s4", [(0, 0, 10, 10)])
    (study.root / "s3.geojson").write_text("no annotation")
    report = study.run()
    assert report["maps_left_out"]["unreadable annotation"] == 1
    assert any(note.startswith("s3: the annotation") for note in report["notes"])
    assert [row["slide_id"] for row in study.rows("maps.csv")] == ["s4"]
    (study.root / "s3.geojson").unlink()
    assert study.run()["maps_left_out"]["unreadable annotation"] == 1


def test_the_report_notes_that_no_map_can_be_measured(study: Study) -> None:
    (study.root / "explain" / "abmil" / "attention" / "s3.h5").unlink()
    (study.root / "explain" / "abmil" / "contribution" / "s3.h5").unlink()
    report = study.run()
    assert report["maps_left_out"]["no map"] == 1
    assert "maps: no slide with an annotated patch, so no map is measured" in report["notes"]
    assert study.rows("maps.csv") == []


def test_maxima_of_the_maps_are_evaluated_as_detections_of_lesions(study: Study, drawn: None) -> None:
    for slide_id, scores in (("s0", [0.7]), ("s1", []), ("s3", [0.9, 0.8]), ("s4", [0.0] * 35 + [0.8]), ("s5", [0.9])):
        study.explain(slide_id, "abmil", "contribution", scores, side=100)
    for slide_id in ("s3", "s4"):
        study.annotate(slide_id, [(0, 0, 300, 300)])
    report = study.run(froc="contribution")
    (froc,) = report["froc"]
    assert [froc[n] for n in ("model", "method", "n_slides", "n_lesions")] == ["abmil", "contribution", 4, 2]
    # One lesion of two is detected before the first false positive, the other never; s3's maxima are one detection.
    assert [m["value"] for m in froc["metrics"].values()] == [0.5] * 7
    note = "FROC of abmil by contribution: 1 slides left out: no annotation, and not labelled normal"
    assert note in report["notes"]
    assert {(r["metric"], r["value"], r["n_slides"]) for r in study.rows("metrics.csv")} >= {("froc", "0.500000", "4")}
    lines = {r["slide_id"]: (r["lesions"], r["false_positives"]) for r in study.rows("froc.csv")}
    assert lines == {"s0": ("0", "1"), "s1": ("0", "0"), "s3": ("1", "0"), "s4": ("1", "1")}
    detections = study.root / "evaluate" / "detections" / "abmil"
    assert [float(n) for n in (detections / "s4.csv").read_text().split(",")] == pytest.approx([0.8, 550, 550])
    assert (study.root / "evaluate" / "froc.png").exists()
    assert study.run()["froc"] == []
    left = [study.root / "evaluate" / "froc.csv", study.root / "evaluate" / "froc.png", *detections.glob("*")]
    assert not [path for path in left if path.exists()]


def test_the_folds_of_each_seed_are_measured_separately(study: Study) -> None:
    def folds(key: str, last: float) -> None:
        """Two seeds; the second predicts ``last`` for s5, a tumour."""
        predicted = [(y, last if (seed, s) == (1, "s5") else q, seed) for seed in (0, 1) for s, _, y, q in COHORT]
        lines = [["abmil", seed, 0, y, "test", 1 - q, q] for y, q, seed in predicted]
        path = study.root / "train" / "predictions.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(csv_text(["model", "seed", "fold", "label", "part", "prob_normal", "prob_tumour"], lines))
        write_provenance(path, Provenance.of(key, "train"))

    assert study.run()["seeds"] == []
    folds("first", last=0.8)
    found = {(one["model"], one["metric"]): one["values"] for one in study.run()["seeds"]}
    assert found["abmil", "auroc"] == {"0": 0.888889, "1": 0.888889}  # of nine pairs, one is in the wrong order
    folds("second", last=0.0)
    assert study.run()["seeds"][0]["values"] == {"0": 0.888889, "1": 0.555556}
    assert float(study.rows("seeds.csv")[0]["mean"]) == pytest.approx(13 / 18, abs=1e-6)


# --- when it is recomputed -----------------------------------------------------------------------------------


def test_a_second_run_touches_no_file(study: Study, drawn: None) -> None:
    study.run()
    before = files(study.root)
    tables = {"metrics.csv", "metrics_patients.csv", "maps.csv", "report.json"}
    pictures = {"roc.png", "pr.png", "confusion.png", "reliability.png", "risk_coverage.png"}
    assert {name for name in before if "/" not in name} == tables | pictures
    study.run()
    assert files(study.root) == before


def test_the_same_study_elsewhere_gives_the_same_bytes(study: Study, drawn: None, tmp_path: Path) -> None:
    study.run()
    (tmp_path / "other").mkdir()
    other = Study(tmp_path / "other")
    other.run()
    first, second = ({name: data for name, (_, data) in files(s.root).items()} for s in (study, other))
    assert first == second
    for name in ("roc.png", "pr.png", "confusion.png", "reliability.png", "risk_coverage.png"):
        assert b"tEXt" not in first[name]  # neither program name nor date


def test_the_report_is_recomputed_when_its_inputs_change(study: Study) -> None:
    made = study.root / "evaluate" / ".made" / "report.json.json"

    def key() -> str:
        study.run()
        return str(json.loads(made.read_text())["key"])

    keys = [key()]
    study.explain("s3", "abmil", "attention", [0.1])
    keys.append(key())
    study.annotate("s3", [(0, 0, 30, 10)])
    keys.append(key())
    study.predict([[*row, "abmil", "true"] for row in COHORT], key="others")
    keys.append(key())
    study.run(seed=1)
    keys.append(str(json.loads(made.read_text())["key"]))
    assert len(set(keys)) == 5
    study.run(seed=1, flipping_points=11)  # a setting of `wsi evaluate explanations`
    assert str(json.loads(made.read_text())["key"]) == keys[-1]


def test_an_interrupted_report_is_not_current(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first = study.run()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("wsi_pipeline.evaluate.stage.write_bytes", fail)
        study.run(bootstrap=5)
    low = first["models"]["abmil"]["metrics"]["accuracy"]["low"]
    assert float(study.rows("metrics.csv")[4]["low"]) != low
    assert study.run() == first
    assert float(study.rows("metrics.csv")[4]["low"]) == low


def test_a_map_of_an_earlier_model_is_not_measured(study: Study) -> None:
    study.run()
    before = len(study.rows("maps.csv"))
    study.explain("s3", "abmil", "attention", [0.9, 0.1, 0.5], unit="attention", weights="an earlier model's")
    study.run()
    assert len(study.rows("maps.csv")) == before - 1
