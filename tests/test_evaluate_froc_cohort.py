"""The FROC of a cohort: which slides are used, which are left out and why, and intervals computed fast but exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.config import EvaluateConfig
from wsi_pipeline.evaluate.bootstrap import intervals
from wsi_pipeline.evaluate.detections import Detections
from wsi_pipeline.evaluate.froc import RATES, SlideFroc, froc_curve, froc_score
from wsi_pipeline.evaluate.froc_cohort import (
    COLUMNS,
    MEASURES,
    FrocSlide,
    froc_intervals,
    froc_lines,
    froc_notes,
    froc_of_models,
    froc_report,
)
from wsi_pipeline.evaluate.map_scores import SlideMaps
from wsi_pipeline.evaluate.predictions import Prediction
from wsi_pipeline.store import write_explanations
from wsi_pipeline.types import Explanation, Int64, PatchGrid, Unit

SIDE = 1024  # px0 of a patch: 32 cells
SECTION = EvaluateConfig(froc="instance", froc_radius_um=100.0, bootstrap=50)


class Study:
    """Slides of 4 x 4 patches at the challenge's resolution."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.maps: list[SlideMaps] = []
        self.predictions: list[Prediction] = []

    def add(
        self,
        slide_id: str,
        label: str,
        scores: Sequence[float],
        *,
        lesions: Sequence[tuple[int, int, int, int]] | str | None = None,
        held_out: bool = True,
        unit: Unit = "probability",
    ) -> None:
        """``lesions``: boxes (left, top, right, bottom) in px0, or the text of an annotation file; None: no file."""
        annotation = None if lesions is None else self.root / f"{slide_id}.geojson"
        if annotation is not None:
            annotation.write_text(lesions if isinstance(lesions, str) else _geojson(lesions or []))
        maps = []
        for method in ("attention", "instance"):
            path = self.root / f"{method}_{slide_id}.h5"
            values = np.zeros((2, 16), np.float32)
            values[1, : len(scores)] = scores if method == "instance" else 1.0
            explained = [
                Explanation(_grid(slide_id), row, method, "abmil", target, unit, False)
                for target, row in zip(("normal", "tumour"), values, strict=True)
            ]
            write_explanations(path, explained, Provenance.of("k", "explain"))
            maps.append((path, held_out))
        self.maps.append(SlideMaps(slide_id, f"patient of {slide_id}", annotation, tuple(maps)))
        outcome = {"normal": 0.5, "tumour": 0.5}
        prediction = Prediction(
            name=slide_id,
            patient_id=f"patient of {slide_id}",
            label=label,
            model="abmil",
            task="classification",
            weights="w",
            held_out=held_out,
            threshold=0.5,
            predicted="tumour",
            outcome=outcome,
            calibrated=outcome,
            in_set=(),
        )
        self.predictions.append(prediction)


def _grid(slide_id: str) -> PatchGrid:
    xy = np.stack(np.divmod(np.arange(16), 4)[::-1], axis=1).astype(np.int64) * SIDE
    side, size = (float(SIDE), float(SIDE)), (4 * SIDE, 4 * SIDE)
    return PatchGrid(slide_id, xy, SIDE, side, side, 0.243, (0.226, 0.226), size, (0, 0, *size))


def _geojson(boxes: Sequence[tuple[int, int, int, int]]) -> str:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [u, y], [u, v], [x, v], [x, y]]]},
            "properties": {"classification": {"name": "Tumour"}},
        }
        for x, y, u, v in boxes
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(tmp_path)
    # Patches 0 and 1 lie in a large lesion, patch 15 in isolated tumour cells.
    made.add("t1", "tumour", [0.75, 0.5, 0.25], lesions=[(0, 0, 2048, 1024), (3500, 3500, 3600, 3600)])
    made.add("t2", "tumour", [0.0, 0.5], lesions=[(0, 2048, 2048, 4096)])  # missed
    made.add("n1", "normal", [0.25, 0.125])
    made.add("n2", "normal", [])
    return made


def test_lesions_and_false_positives_of_four_slides(study: Study) -> None:
    saved: dict[str, Detections] = {}
    (one,) = froc_of_models(
        study.maps, study.predictions, SECTION, lambda model, slide_id, found: saved.update({slide_id: found})
    )
    assert froc_lines(one) == [
        ["t1", "abmil", "instance", 1, 1, 1, "0.250000", "0.750000"],
        ["t2", "abmil", "instance", 1, 0, 1, "0.500000", "0.000000"],
        ["n1", "abmil", "instance", 0, 0, 2, "0.250000", ""],
        ["n2", "abmil", "instance", 0, 0, 0, "", ""],
    ]
    assert all(len(line) == len(COLUMNS) for line in froc_lines(one))
    assert one.curve is not None
    assert one.curve[0].tolist() == [0, 0, 0.25, 0.75, 1]  # of four slides: nothing, 0.75, 0.5, 0.25, 0.125
    assert one.curve[1].tolist() == [0, 0.5, 0.5, 0.5, 0.5]
    assert one.measures["froc"].value == 0.5
    assert tuple(one.measures) == MEASURES
    assert one.measures["froc"].n > 0
    assert saved["n1"].probability.tolist() == [0.25, 0.125]
    assert saved["n1"].xy_px0.tolist() == [[512, 512], [1536, 512]]
    report = froc_report(one)
    assert (report["n_slides"], report["n_lesions"], report["n_isolated"]) == (4, 2, 1)
    assert froc_notes(one) == []


def test_slides_that_cannot_be_used_are_left_out_and_reported(study: Study) -> None:
    before = froc_of_models(study.maps, study.predictions, SECTION)[0].curve
    study.add("seen", "tumour", [1.0], lesions=[(0, 0, 2048, 1024)], held_out=False)
    study.add("bare", "tumour", [1.0])
    study.add("broken", "tumour", [1.0], lesions="no annotation at all")
    study.add("empty", "tumour", [1.0], lesions=[])
    study.add("other", "normal", [1.0], lesions=[(0, 0, 2048, 1024)])
    (one,) = froc_of_models(study.maps, study.predictions, SECTION)
    assert before is not None
    assert one.curve is not None
    assert [c.tolist() for c in one.curve] == [c.tolist() for c in before]
    assert froc_notes(one) == [
        "FROC of abmil by instance: 1 slides left out: its model was trained on the patient",
        "FROC of abmil by instance: 1 slides left out: labelled normal, with a lesion in the annotation",
        "FROC of abmil by instance: 1 slides left out: no annotation, and not labelled normal",
        "FROC of abmil by instance: 1 slides left out: no lesion in the annotation",
        "FROC of abmil by instance: 1 slides left out: unreadable annotation",
    ]


def test_a_negative_slide_with_an_empty_annotation_has_no_lesion(study: Study) -> None:
    study.add("n3", "normal", [0.5], lesions=[])
    (one,) = froc_of_models(study.maps, study.predictions, SECTION)
    assert froc_lines(one)[-1] == ["n3", "abmil", "instance", 0, 0, 1, "0.500000", ""]


def test_a_normal_slide_may_have_isolated_tumour_cells(study: Study) -> None:
    study.add("n3", "normal", [0.5] + 14 * [0.0] + [1.0], lesions=[(3500, 3500, 3600, 3600)])
    (one,) = froc_of_models(study.maps, study.predictions, SECTION)
    assert froc_lines(one)[-1] == ["n3", "abmil", "instance", 0, 1, 1, "0.500000", ""]


def test_without_a_lesion_there_is_no_curve(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.add("n1", "normal", [0.25])
    (one,) = froc_of_models(study.maps, study.predictions, SECTION)
    assert (one.curve, one.measures) == (None, {})
    note = "FROC of abmil by instance: there is no held-out slide with a lesion, so there is no curve"
    assert froc_notes(one) == [note]


def test_maps_that_are_not_probabilities_are_reported_as_relative(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.add("t1", "tumour", [0.25], lesions=[(0, 0, 2048, 1024)], unit="attention")
    (one,) = froc_of_models(study.maps, study.predictions, SECTION)
    assert "attention is relative to its slide" in froc_notes(one)[0]


def test_models_of_other_tasks_and_methods_without_maps_have_no_froc(study: Study) -> None:
    assert froc_of_models(study.maps, study.predictions, EvaluateConfig(froc="gradient_x_input")) == []
    assert froc_of_models(study.maps, [], SECTION) == []


@pytest.mark.parametrize("first_try", [9, 32])
@pytest.mark.parametrize("count", [3, 15, 60, 400])
def test_intervals_from_the_highest_false_positives_equal_those_from_all(
    count: int, first_try: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few false positives and many, resamples on both sides of 8 per slide (of 9 at first), ties, missed lesions."""
    monkeypatch.setattr("wsi_pipeline.evaluate.froc_cohort._FIRST_TRY", first_try)
    rng = np.random.default_rng(count)
    slides = []
    for i in range(12):
        false = rng.random(rng.integers(0, 2 * count) * (i % 3 > 0)).astype(np.float32).round(2)
        lesions = rng.random(i % 4).astype(np.float32) * rng.integers(0, 2, i % 4).astype(np.float32)
        slides.append(FrocSlide(f"s{i}", f"p{i // 2}", frozenset(), SlideFroc(false, lesions, i % 4)))

    def plain(rows: Int64) -> dict[str, float]:
        curve = froc_curve([slides[i].found for i in rows])
        return {"froc": froc_score(*curve), "froc_sensitivity_at_8": float(np.interp(8, *curve))}

    expected = intervals(plain, [s.patient_id for s in slides], SECTION.bootstrap, SECTION.seed)
    found = froc_intervals(slides, SECTION)
    assert {name: found[name] for name in expected} == expected
    assert MEASURES[-1] == f"froc_sensitivity_at_{RATES[-1]:g}"
