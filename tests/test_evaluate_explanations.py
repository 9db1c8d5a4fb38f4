"""``wsi evaluate explanations``: overlap measures against loops, and the command on a small run folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from explaining import scores_of
from matplotlib.figure import Figure
from rich.console import Console
from scipy.stats import wilcoxon
from torch import Tensor
from typer.testing import CliRunner

from wsi_pipeline.aggregate import models
from wsi_pipeline.aggregate.checkpoint import ModelCard, load_model, save_model
from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.cli.main import app
from wsi_pipeline.config import EvaluateConfig, ExplainConfig
from wsi_pipeline.csvtable import csv_text
from wsi_pipeline.errors import WsiError
from wsi_pipeline.evaluate.flipping_plot import curves_png
from wsi_pipeline.evaluate.froc_cohort import froc_of_models
from wsi_pipeline.evaluate.map_scores import SlideMaps
from wsi_pipeline.evaluate.overlap import dice_of_others, mean_iou, overlap, pixel_accuracy, unit_scaled
from wsi_pipeline.evaluate.predictions import Prediction
from wsi_pipeline.evaluate.summary import EXPLANATION_HEADLINES, digits, read_explanations_summary
from wsi_pipeline.evaluate.xai_slide import outlined_class
from wsi_pipeline.evaluate.xai_statistics import paired_p
from wsi_pipeline.explain.explained_model import Attribution, ExplainedModel
from wsi_pipeline.explain.measures.patch_flipping import flipping, perturbable
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.explain.stage import explain_slide
from wsi_pipeline.store import BagWriter, read_bag
from wsi_pipeline.types import Float64, PatchGrid, SlideRow, Unit

DIM, SIDE = 6, 5  # features per patch, patches per row
SMALL = {"abmil": {"hidden": 8, "attention_dim": 4}, "transmil": {"hidden": 8, "heads": 2, "landmarks": 4}}
METHODS = ["attention", "contribution", "instance"]

# --- maps as segmentations -----------------------------------------------------------------------------------


def slow_overlap(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Every measure from its definition, patch by patch."""
    low, high, n = min(scores), max(scores), len(scores)
    scaled = [(s - low) / (high - low) for s in scores]
    called = [s > sum(scaled) / n for s in scaled]
    hits = sum(c and p for c, p in zip(called, positive, strict=True))
    false = sum(c and not p for c, p in zip(called, positive, strict=True))
    misses = sum(not c and p for c, p in zip(called, positive, strict=True))
    two = [(1 - s, not p) for s, p in zip(scaled, positive, strict=True)]
    two += [(s, bool(p)) for s, p in zip(scaled, positive, strict=True)]
    best = [
        2
        * sum(s >= t / 100 and p for s, p in zip(scaled, positive, strict=True))
        / (sum(s >= t / 100 for s in scaled) + sum(positive))
        for t in range(101)
    ]
    return {
        "counts": [hits, false, misses, n - hits - false - misses],
        "ap": slow_precision(two),
        "f1": 2 * hits / (2 * hits + false + misses),
        "auprc": slow_precision([(s, bool(p)) for s, p in zip(scaled, positive, strict=True)]),
        "auroc": np.mean([
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, p in zip(scaled, positive, strict=True) if p
            for b, q in zip(scaled, positive, strict=True) if not q
        ]),
        "pointing": float(positive[next(k for k in range(n) if scores[k] == high)]),
        "mass": sum(s for s, p in zip(scores, positive, strict=True) if p and s > 0) / sum(s for s in scores if s > 0),
        "dice": best,
    }  # fmt: skip


def slow_precision(rows: list[tuple[float, bool]]) -> float:
    """Average precision: at each distinct score, precision times the recall added there."""
    total, before = 0.0, 0.0
    for threshold in sorted({s for s, _ in rows}, reverse=True):
        called = [p for s, p in rows if s >= threshold]
        recall = sum(called) / sum(p for _, p in rows)
        total += (recall - before) * sum(called) / len(called)
        before = recall
    return total


@pytest.mark.parametrize("seed", range(4))
def test_overlap_measures_equal_their_definitions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(-4, 6, 30) / 3.0  # with ties
    positive = generator.random(30) < 0.3
    found = overlap(scores, positive)._asdict()
    for name, expected in slow_overlap(scores, positive).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-12, err_msg=name)


def test_accuracy_and_iou_are_from_counts_over_all_slides() -> None:
    small, large = np.array([1, 0, 0, 0]), np.array([30, 20, 10, 40])
    assert pixel_accuracy(small + large) == pytest.approx(71 / 101)
    assert mean_iou(small + large) == pytest.approx((31 / 61 + 40 / 70) / 2)
    assert mean_iou(np.array([5, 0, 0, 0])) == 1.0  # no background anywhere
    assert np.isnan(mean_iou(np.zeros(4, np.int64)))


def test_a_constant_map_predicts_nothing_and_points_at_the_first_patch() -> None:
    assert unit_scaled(np.full(3, 9.0)).tolist() == [0.0, 0.0, 0.0]
    found = overlap(np.zeros(4), np.array([True, False, False, True]))
    assert found.counts.tolist() == [0, 0, 2, 2]
    assert (found.auprc, found.auroc, found.pointing) == (0.5, 0.5, 1.0)
    assert np.isnan(found.mass)


def test_the_threshold_of_a_slide_is_chosen_on_other_patients() -> None:
    curves: Float64 = np.zeros((3, 101))
    curves[0, 10], curves[1, 20], curves[2, [10, 20]] = 1.0, 0.9, (0.3, 0.8)
    # s0: p1's best is 20; s1 and s2, both p1: p0's best is 10
    assert dice_of_others(curves, ["p0", "p1", "p1"]).tolist() == [0.0, 0.0, 0.3]
    assert np.isnan(dice_of_others(curves[:2], ["p0", "p0"])).all()


def test_methods_are_compared_by_one_difference_per_patient() -> None:
    first, second = np.array([1.0, 3.0, 5.0, 2.0, np.nan, 9.0]), np.array([0.0, 1.0, 1.0, 3.5, 7.0, 1.0])
    patients = ["a", "a", "b", "c", "d", "e"]
    assert paired_p(first, second, patients) == pytest.approx(wilcoxon([1.5, 4.0, -1.5, 8.0]).pvalue)
    assert paired_p(first[:4], first[:4], patients[:4]) == 1.0
    assert np.isnan(paired_p(first[4:5], second[4:5], ["d"]))


def test_the_outlined_class_is_the_label_or_the_positive_one_of_two() -> None:
    def slide(label: str | None, annotation: Path | None = Path("a.geojson")) -> SlideRow:
        return SlideRow("s", Path("s.tif"), label=label, annotation=annotation)

    assert outlined_class(slide("luad"), ("luad", "lusc")) == "luad"
    assert outlined_class(slide(None), ("normal", "tumour")) == "tumour"
    assert outlined_class(slide(None), ("a", "b", "c")) is None
    assert outlined_class(slide("cyst"), ("normal", "tumour")) is None
    assert outlined_class(slide("luad", None), ("luad", "lusc")) is None
    assert outlined_class(slide("er"), ("er", "pr"), "multilabel") == "er"
    assert outlined_class(slide("er;pr"), ("er", "pr"), "multilabel") is None
    assert outlined_class(slide(None), ("er", "pr"), "multilabel") is None
    assert outlined_class(slide("12.5"), ("value",), "regression") is None
    assert outlined_class(slide(None), ("risk",), "survival") is None


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("classification", "Probability of the predicted class"),
        ("multilabel", "Probability of the most probable label"),
        ("regression", "Predicted value"),
        ("survival", "Predicted risk (log hazard)"),
    ],
)
def test_the_axis_of_the_flipping_plot_is_what_the_task_predicts(
    task: str, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(panels: Sequence[Any], draw: Callable[..., None]) -> bytes:
        axes = Figure().add_subplot()
        draw(axes, panels[0])
        return axes.get_ylabel().encode()

    monkeypatch.setattr("wsi_pipeline.evaluate.flipping_plot.panels_png", drawn)
    assert curves_png({"m": {"random": np.linspace(1, 0, 5)}}, {"m": task}) == label.encode()


# --- the command ---------------------------------------------------------------------------------------------


class Study:
    """A run folder with bags, two folds of each model and outlines; fold f has seen patient p{1 - f}, both p2."""

    def __init__(self, root: Path, names: Sequence[str] = ("abmil",)) -> None:
        self.root = root
        self.run_folder = root / "run"
        lines = ["slide_id,path,patient_id,label,annotation"]
        for i in range(6):
            outline = f"s{i}.geojson" if i % 2 else ""
            lines.append(f"s{i},s{i}.tif,p{min(i, 3)},{'tumour' if i % 2 else 'normal'},{outline}")
            self.write_bag(f"s{i}", np.random.default_rng(i).standard_normal((15 + i, DIM)))
            if i % 2:
                self.outline(f"s{i}", 210)
        (root / "slides.csv").write_text("\n".join(lines) + "\n")
        for name in names:
            for fold in range(2):
                self.write_model(name, fold)
        rows = [(name, 0, fold) for name in names for fold in range(2)]
        (self.run_folder / "train" / "predictions.csv").write_text(csv_text(["model", "seed", "fold"], rows))
        choices = [{"name": name, "options": SMALL[name]} for name in names]
        settings = {
            "slides": "slides.csv",
            "out": "run",
            "aggregate": {"models": choices},
            "explain": {"methods": METHODS},
            "evaluate": {"bootstrap": 40, "flipping_points": 11, "infidelity_samples": 5, "sensitivity_samples": 2},
        }
        (root / "config.yaml").write_text(yaml.safe_dump(settings))

    def write_bag(self, slide_id: str, features: np.ndarray) -> None:
        n = len(features)
        grid = PatchGrid(
            slide_id=slide_id,
            xy_px0=np.stack([np.arange(n) % SIDE * 100, np.arange(n) // SIDE * 100], axis=1).astype(np.int64),
            side_px=100,
            side_px0=(100.0, 100.0),
            stride_px0=(100.0, 100.0),
            target_mpp=0.5,
            mpp=(0.5, 0.5),
            slide_size_px0=(500, 1000),
            bounds_px0=(0, 0, 500, 1000),
        )
        with BagWriter(self.run_folder / "embed" / f"{slide_id}.h5", grid, DIM, "float32") as writer:
            writer.append(features)
            writer.finish(np.ones(n, bool), "lite0", "digest", Provenance.of("bag", "embed"))

    def outline(self, slide_id: str, width: int, height: int = 100) -> None:
        """A box from the first patch, ``width`` level-0 pixels wide; by default over the first row."""
        ring = [[0, 0], [width, 0], [width, height], [0, height], [0, 0]]
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
        text = json.dumps({"type": "FeatureCollection", "features": [feature]})
        (self.root / f"{slide_id}.geojson").write_text(text)

    def write_model(self, name: str, fold: int, scale: float = 2.0) -> None:
        torch.manual_seed(fold)
        model = models.build(name, DIM, 2, **SMALL[name])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        seen = {"seen_patients": [f"p{1 - fold}", "p2"]}
        card = ModelCard(name, dict(SMALL[name]), ("normal", "tumour"), "lite0", {}, "digest", DIM, 0.5, 100, 0.5, seen)
        save_model(self.fold(name, fold), model, card, "key")

    def fold(self, name: str, fold: int) -> Path:
        return self.run_folder / "train" / name / f"seed0_fold{fold}"

    def measure(self, *overrides: str, code: int = 0) -> str:
        """Run the command; returns its output."""
        flags = [part for override in overrides for part in ("--set", override)]
        done = CliRunner().invoke(app, ["evaluate", "explanations", str(self.root / "config.yaml"), *flags])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    def error(self, override: str) -> str:
        """Run the command; returns the message of the exception that it raises."""
        arguments = ["evaluate", "explanations", str(self.root / "config.yaml"), "--set", override]
        return str(CliRunner().invoke(app, arguments).exception)

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.run_folder / "evaluate" / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def slide(self, model: str, slide_id: str) -> dict[str, Any]:
        path = self.run_folder / "evaluate" / "explanations" / model / f"{slide_id}.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def state(self) -> dict[str, tuple[int, int]]:
        files = (p for p in self.run_folder.rglob("*") if p.is_file())
        return {str(p.relative_to(self.run_folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Measured once; tests only read it."""
    study = Study(tmp_path_factory.mktemp("study"), tuple(SMALL))
    assert "explanations.md" in study.measure()
    return study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of abmil alone, without plots."""
    monkeypatch.setattr("wsi_pipeline.evaluate.xai_report.curves_png", lambda curves, tasks: b"a plot")
    return Study(tmp_path)


def test_every_fitting_method_and_random_scores_are_measured_on_held_out_slides(finished: Study) -> None:
    folder = finished.run_folder / "evaluate" / "explanations"
    held_out = ["s0", "s1", "s3", "s4", "s5"]  # both members have seen p2
    assert {m.name: sorted(p.stem for p in m.glob("*.json")) for m in folder.iterdir() if m.name != ".made"} == {
        "abmil": held_out,
        "transmil": held_out,
    }
    assert list(finished.slide("abmil", "s0")["methods"]) == [*METHODS, "random"]
    assert list(finished.slide("transmil", "s0")["methods"]) == ["attention", "instance", "random"]
    rows = finished.rows("explanations.csv")
    assert {(r["model"], r["method"]) for r in rows} == {
        *(("abmil", m) for m in (*METHODS, "random")),
        *(("transmil", m) for m in ("attention", "instance", "random")),
    }
    assert (finished.run_folder / "evaluate" / "explanations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("slide_id", "folds"), [("s0", (0,)), ("s1", (1,)), ("s3", (0, 1))])
def test_curves_are_those_of_the_held_out_members(finished: Study, slide_id: str, folds: tuple[int, ...]) -> None:
    members = [load_model(finished.fold("abmil", fold), "cpu")[0] for fold in folds]
    bag = read_bag(finished.run_folder / "embed" / f"{slide_id}.h5")
    features, xy = torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)
    with torch.no_grad():
        probability = np.mean([m(features, xy).logits.softmax(0).tolist() for m in members], axis=0)
    target = int(probability.argmax())
    content = finished.slide("abmil", slide_id)
    assert (content["task"], content["target"]) == ("classification", ("normal", "tumour")[target])
    for removal, stand_in in (("drop", None), ("replace", features.mean(0))):
        for name in METHODS:
            scores = np.mean([scores_of(explainers.build(name), m, features, xy, target) for m in members], axis=0)
            expected = flipping(
                perturbable([ExplainedModel(m) for m in members], features, xy, stand_in), scores, target, points=11
            )
            found = content["methods"][name]["flips"][removal]
            np.testing.assert_allclose(found["most"], expected.most.outcome, atol=1e-6)
            np.testing.assert_allclose(found["least"], expected.least.outcome, atol=1e-6)
            assert found["most"][0] == pytest.approx(probability[target], abs=1e-6)


def test_the_table_has_means_over_slides_with_intervals_over_patients(finished: Study) -> None:
    rows = {(r["model"], r["method"], r["metric"]): r for r in finished.rows("explanations.csv")}
    slides = [finished.slide("abmil", s) for s in ("s0", "s1", "s3", "s4", "s5")]
    areas = [np.mean(s["methods"]["contribution"]["flips"]["drop"]["most"]) for s in slides]
    row = rows["abmil", "contribution", "aupc_drop"]
    assert float(row["value"]) == pytest.approx(np.mean(areas), abs=1e-6)
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert (row["n_slides"], row["n_patients"]) == ("5", "3")
    assert 0 < float(row["p_attention"]) <= 1
    assert rows["abmil", "attention", "aupc_drop"]["p_attention"] == ""
    assert "" not in {rows["abmil", "attention", "aupc_drop"][name] for name in ("value", "p_random")}
    assert float(rows["abmil", "attention", "seconds"]["value"]) > 0
    assert ("abmil", "random", "seconds") not in rows
    assert -1 <= float(rows["abmil", "attention", "redrawn"]["value"]) <= 1


def test_a_narrow_terminal_truncates_no_number(tmp_path: Path) -> None:
    path = tmp_path / "explanations.csv"
    values = dict(zip(EXPLANATION_HEADLINES, [0.539, -0.003, 0.94, 0.988, 0.873, 0.858, 1, 1, -0.057], strict=True))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "method", "metric", "value", "n_slides"])
        writer.writerows(["abmil", "integrated_gradients", name, value, 12] for name, value in values.items())
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*read_explanations_summary(path))
    (line,) = [line for line in console.export_text().splitlines() if "integrated_gradients" in line]
    assert line.split() == ["integrated_gradients", *map(digits, values.values())]


def test_infidelity_is_measured_for_attributions_alone(finished: Study) -> None:
    rows = {(r["model"], r["method"], r["metric"]): r for r in finished.rows("explanations.csv")}
    assert {method for _, method, metric in rows if metric == "infidelity"} == {"contribution"}
    assert 0 < float(rows["abmil", "contribution", "infidelity"]["value"]) < 1
    for name, expected in (("attention", None), ("instance", None), ("random", None)):
        assert finished.slide("abmil", "s0")["methods"][name]["infidelity"] is expected


def test_localisation_is_measured_on_the_outlined_slides(finished: Study) -> None:
    rows = {(r["model"], r["method"], r["metric"]): r for r in finished.rows("explanations.csv")}
    positive = np.arange(18) < 2  # 210 of the 500 pixels of s3's first row of patches
    counts = np.zeros(4, np.int64)
    for slide_id, patches, folds in (("s1", 16, (1,)), ("s3", 18, (0, 1)), ("s5", 20, (0, 1))):
        members = [load_model(finished.fold("abmil", fold), "cpu")[0] for fold in folds]
        bag = read_bag(finished.run_folder / "embed" / f"{slide_id}.h5")
        features, xy = torch.from_numpy(bag.features), torch.from_numpy(bag.grid.xy_stride)
        scores = np.mean([scores_of(explainers.build("contribution"), m, features, xy, 1) for m in members], axis=0)
        counts += slow_overlap(scores, np.arange(patches) < 2)["counts"]
        if slide_id == "s3":
            found = finished.slide("abmil", "s3")["methods"]["contribution"]["overlap"]
            assert found["ap"] == pytest.approx(slow_overlap(scores, positive)["ap"], abs=1e-6)
    row = rows["abmil", "contribution", "miou"]
    assert float(row["value"]) == pytest.approx(mean_iou(counts), abs=1e-6)
    assert (row["n_slides"], row["n_patients"]) == ("3", "2")
    assert finished.slide("abmil", "s0")["methods"]["contribution"]["overlap"] is None


class First:
    """A plug-in whose scores are the first feature of each patch."""

    unit: Unit = "probability"
    signed = False
    class_specific = False

    def fits(self, explained: ExplainedModel) -> str | None:
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        return Attribution(features[:, 0])


TALL = (210, 600)  # level-0 pixels: 105 by 300 µm, larger than isolated tumour cells; columns 0 to 2 of the patches


def test_the_froc_of_three_slides(study: Study) -> None:
    """Detected: 0.75 and 0.3. False positives: 0.5; 0.25 twice; 0.125, the lowest, which is not on the curve."""
    lines = (study.root / "slides.csv").read_text().splitlines()
    (study.root / "slides.csv").write_text("\n".join(lines[i] for i in (0, 1, 2, 4)) + "\n")  # s0, s1, s3
    for slide_id, scores in (
        ("s0", {0: 0.25, 2: 0.125}),
        ("s1", {0: 0.75, 4: 0.25}),
        ("s3", {6: 0.3, 3: 0.5}),
    ):
        features = np.random.default_rng(0).standard_normal((15, DIM))
        features[:, 0] = [scores.get(i, 0.0) for i in range(15)]
        study.write_bag(slide_id, features)
        study.outline(slide_id, *TALL)
    study.measure(f"explain.methods=[{__name__}:First]", "evaluate.froc_radius_um=60")
    name = f"{__name__}:First"
    found = [study.slide("abmil", slide_id)["methods"][name]["froc"] for slide_id in ("s0", "s1", "s3")]
    assert found == [
        {"false_positives": [0.25, 0.125], "lesions": []},
        {"false_positives": [0.25], "lesions": [0.75]},
        {"false_positives": [0.5], "lesions": [0.3]},
    ]
    rows = {(r["method"], r["metric"]): r for r in study.rows("explanations.csv")}
    row = rows[name, "froc"]
    assert float(row["value"]) == pytest.approx((0.5 + 5 * 1.0) / 6, abs=1e-6)  # half at 1/4 per slide, then both
    assert (row["n_slides"], row["n_patients"], row["p_random"]) == ("3", "3", "")
    assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1
    assert "relative to its slide" not in (study.run_folder / "evaluate" / "explanations.md").read_text()


def stored_map(study: Study, method: str, slide_id: str, folds: Sequence[int]) -> Path:
    """The method's map as ``wsi explain`` stores it."""
    path = study.root / f"{method}_{slide_id}.h5"
    bag, members = study.run_folder / "embed" / f"{slide_id}.h5", [study.fold("abmil", fold) for fold in folds]
    made = Provenance.of("k", "explain")
    explain_slide(bag, members, "abmil", method, ExplainConfig(), {}, output=path, provenance=made)
    return path


def test_the_froc_column_equals_that_of_evaluate_for_the_same_maps(study: Study) -> None:
    for slide_id in ("s1", "s3", "s5"):
        study.outline(slide_id, *TALL)
    study.measure("evaluate.froc_radius_um=60")
    rows = {(r["method"], r["metric"]): r for r in study.rows("explanations.csv")}
    members = {"s0": ("p0", (0,)), "s1": ("p1", (1,)), "s3": ("p3", (0, 1)), "s4": ("p3", (0, 1)), "s5": ("p3", (0, 1))}
    for method in METHODS:
        maps, predictions = [], []
        for slide_id, (patient, folds) in members.items():
            annotation = study.root / f"{slide_id}.geojson"
            path = stored_map(study, method, slide_id, folds)
            maps.append(SlideMaps(slide_id, patient, annotation if annotation.exists() else None, ((path, True),)))
            label, outcome = "tumour" if annotation.exists() else "normal", {"normal": 0.5, "tumour": 0.5}
            case = (slide_id, patient, label, "abmil", "classification")
            predictions.append(Prediction(*case, "weights", True, 0.5, label, outcome, outcome, ()))
        (one,) = froc_of_models(maps, predictions, EvaluateConfig(froc=method, froc_radius_um=60, bootstrap=40))
        row = rows[method, "froc"]
        for name in ("value", "low", "high"):
            assert float(row[name]) == pytest.approx(getattr(one.measures["froc"], name), abs=1e-6)
        assert (row["n_slides"], row["n_patients"]) == ("5", "3")
    assert len({rows[method, "froc"]["value"] for method in METHODS}) == 3
    assert float(rows["random", "froc"]["value"]) > 0
    text = (study.run_folder / "evaluate" / "explanations.md").read_text()
    assert "- FROC of attention: attention is relative to its slide, so a threshold does not" in text
    assert "- FROC of contribution: attribution is relative" in text


def test_slides_that_the_froc_cannot_use_are_reported(study: Study) -> None:
    study.outline("s1", *TALL)
    (study.root / "s3.geojson").write_text("no annotation")
    lines = (study.root / "slides.csv").read_text().splitlines()
    (study.root / "slides.csv").write_text("\n".join([*lines[:6], lines[6].rsplit(",", 1)[0]]) + "\n")
    study.measure()
    assert study.slide("abmil", "s5")["lesions"] == {"left_out": "no annotation, and not labelled normal"}
    assert study.slide("abmil", "s1")["lesions"] == {"targets": 1, "isolated": []}
    rows = {(r["method"], r["metric"]): r for r in study.rows("explanations.csv")}
    assert rows["instance", "froc"]["n_slides"] == "3"
    text = (study.run_folder / "evaluate" / "explanations.md").read_text()
    assert "- FROC: 1 slides left out: no annotation, and not labelled normal\n" in text
    assert "- FROC: 1 slides left out: unreadable annotation\n" in text


def test_without_a_target_lesion_there_is_no_froc_column(finished: Study) -> None:
    assert finished.slide("abmil", "s1")["lesions"] == {"targets": 0, "isolated": [1]}
    assert "froc" not in {row["metric"] for row in finished.rows("explanations.csv")}


def test_the_matrix_is_the_mean_rank_correlation_over_slides(finished: Study) -> None:
    rows = {(r["model"], r["method"]): r for r in finished.rows("explanations_spearman.csv")}
    found = np.mean([finished.slide("abmil", s)["spearman"] for s in ("s0", "s1", "s3", "s4", "s5")], axis=0)
    assert float(rows["abmil", "attention"]["instance"]) == pytest.approx(found[0, 2], abs=1e-6)
    assert float(rows["abmil", "random"]["random"]) == pytest.approx(1.0)
    assert rows["transmil", "attention"]["contribution"] == ""


def test_the_page_lists_every_method_of_every_model(finished: Study) -> None:
    text = (finished.run_folder / "evaluate" / "explanations.md").read_text()
    assert text.count("| contribution |") == 3  # faithfulness, localisation, sanity; of abmil only
    assert text.count("| random |") == 4  # two models, without sanity
    assert "## transmil" in text


def test_a_second_run_touches_no_file(study: Study) -> None:
    study.measure()
    before = study.state()
    study.measure()
    assert study.state() == before


def test_only_measures_whose_inputs_change_are_recomputed(study: Study) -> None:
    study.measure()
    before = study.state()
    study.write_model("abmil", 0, scale=1.5)
    study.measure()
    changed = {name for name, stamp in study.state().items() if before.get(name) != stamp and "train/" not in name}
    slides = {n.removeprefix("evaluate/explanations/") for n in changed if "explanations/" in n and ".made" not in n}
    assert slides == {f"abmil/{s}.json" for s in ("s0", "s3", "s4", "s5")}  # s1 is predicted by fold 1 alone
    before = study.state()
    study.measure("evaluate.bootstrap=50")
    changed = {name for name, stamp in study.state().items() if before.get(name) != stamp}
    assert not any("explanations/" in name for name in changed)
    assert "evaluate/explanations.csv" in changed
    before = study.state()
    study.outline("s3", 310)
    study.measure("evaluate.bootstrap=50")
    changed = {name for name, stamp in study.state().items() if before.get(name) != stamp and name.endswith("json")}
    assert {name.split("/")[-1] for name in changed} == {"s3.json", "s3.json.json", "explanations.csv.json"}


def test_replacing_and_perturbing_can_be_left_out(study: Study) -> None:
    study.measure("evaluate.replacement=null", "evaluate.infidelity_samples=0", "evaluate.sensitivity_samples=0")
    metrics = {row["metric"] for row in study.rows("explanations.csv")}
    assert "aupc_drop" in metrics
    assert not metrics & {"aupc_replace", "infidelity", "sensitivity"}


def test_fewer_slides_and_models_can_be_measured_annotated_ones_first(tmp_path: Path) -> None:
    study = Study(tmp_path, ("abmil", "transmil"))
    study.measure("evaluate.explained_models=[abmil]", "evaluate.explained_slides=4")
    folder = study.run_folder / "evaluate" / "explanations"
    assert sorted(str(p.relative_to(folder)) for p in folder.glob("*/*.json")) == [
        f"abmil/{name}.json" for name in ("s0", "s1", "s3", "s5")
    ]
    assert "there is no model 'clam'; available: abmil, transmil" in study.error("evaluate.explained_models=[clam]")


def test_a_slide_with_a_damaged_bag_fails_alone(study: Study) -> None:
    study.write_bag("s0", np.full((15, DIM), np.nan))
    assert "1 of 6 slides failed" in study.measure(code=1)
    assert {row["n_slides"] for row in study.rows("explanations.csv") if row["metric"] == "aupc_drop"} == {"4"}


def test_a_slide_of_one_patch_is_measured(study: Study) -> None:
    study.write_bag("s1", np.ones((1, DIM)))
    study.measure()
    found = study.slide("abmil", "s1")["methods"]["contribution"]
    assert len(set(found["flips"]["drop"]["most"])) == 1  # the patch is never dropped
    assert found["overlap"]["counts"] == [0, 0, 1, 0]
    assert (found["redrawn"], found["overlap"]["auroc"]) == (None, None)


def test_without_outlines_there_is_no_localisation(study: Study) -> None:
    text = (study.root / "slides.csv").read_text()
    (study.root / "slides.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()) + "\n")
    study.measure()
    assert not {row["metric"] for row in study.rows("explanations.csv")} & {"miou", "auprc", "dice", "pointing", "froc"}
    assert study.slide("abmil", "s1")["lesions"] is None
    assert "Localisation" not in (study.run_folder / "evaluate" / "explanations.md").read_text()


def test_a_slide_with_an_unreadable_annotation_lacks_only_the_localisation(study: Study) -> None:
    (study.root / "s3.geojson").write_text("no annotation")
    study.measure()
    assert study.slide("abmil", "s3")["outlined"] is None
    assert "s3.geojson" in study.slide("abmil", "s3")["note"]
    found = {row["metric"]: row["n_slides"] for row in study.rows("explanations.csv")}
    assert (found["aupc_drop"], found["auprc"]) == ("5", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explanations"], "give CONFIG, or explanations CONFIG"),
        (["explanation", "config.yaml"], "evaluate explanation config.yaml is not known"),
        (["explanations", "config.yaml", "more"], "give CONFIG, or explanations CONFIG"),
        (["explanations", "none.yaml"], "cannot read the config none.yaml"),
        (["none.yaml"], "cannot read the config none.yaml"),
        (["explanations", "config.yaml", "--only", "s0"], "leave --only out"),
        (["explanations", "config.yaml", "--set", "explain.methods=[atention]"], "did you mean 'attention'"),
    ],
)
def test_wrong_arguments_give_an_error_of_one_line(
    finished: Study, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.root)
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert isinstance(done.exception, WsiError)  # main() prints it and exits with code 2
    assert done.exception.exit_code == 2
    assert message in str(done.exception)


def test_without_a_held_out_slide_there_is_an_error(study: Study) -> None:
    text = (study.root / "slides.csv").read_text()
    (study.root / "slides.csv").write_text(text.splitlines()[0] + "\n" + text.splitlines()[3] + "\n")  # s2, of p2
    with pytest.raises(WsiError, match="no slide is held out"):
        study.measure()


def test_evaluate_with_a_config_alone_evaluates_predictions(finished: Study) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(finished.root / "config.yaml")])
    assert "run `wsi predict` first" in str(done.exception)
