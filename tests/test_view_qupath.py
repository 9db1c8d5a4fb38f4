"""The files for QuPath: the rules that its importer imposes, and the positions of the tiles."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from shapely.geometry import MultiPolygon, Polygon, shape

from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.read.annotations import read_annotation
from wsi_pipeline.types import Explanation, PatchGrid, SlideRow
from wsi_pipeline.view.groovy import loader_text, slides_text, write_loader
from wsi_pipeline.view.qupath_tiles import kept_tiles, write_tiles

TISSUE = MultiPolygon(
    [Polygon([(110, 220), (190, 220), (190, 280), (110, 280)], [[(130, 240), (150, 240), (150, 260)]])]
)


def explanations_of(n: int = 6, slide_id: str = "s1", side: float = 32.25) -> list[Explanation]:
    xy = np.array([[100 + 40 * (k % 3), 200 + 40 * (k // 3)] for k in range(n)], np.int64)
    grid = PatchGrid(slide_id, xy, 16, (side, side), (40.0, 40.0), 0.5, (0.25, 0.25), (900, 800), (100, 200, 700, 500))
    scores = np.random.default_rng(0).normal(size=(2, n)).astype(np.float32)
    return [
        Explanation(grid, scores[0], "attention", "abmil", 'tumour "<&', "attention", False),
        Explanation(grid, scores[1], "contribution", "abmil", 'tumour "<&', "attribution", True),
    ]


def parse(path: Path) -> dict[str, Any]:
    """Strict JSON, which does not include NaN and Infinity."""

    def reject(name: str) -> float:
        raise AssertionError(f"{name} in {path}")

    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=reject)
    return data


def values(data: object) -> Iterator[object]:
    yield data
    if isinstance(data, (dict, list)):
        for value in data.values() if isinstance(data, dict) else data:
            yield from values(value)


def rings(feature: dict[str, Any]) -> list[list[list[float]]]:
    geometry = feature["geometry"]
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [ring for polygon in polygons for ring in polygon]


@pytest.fixture
def written(tmp_path: Path) -> list[dict[str, Any]]:
    assert write_tiles(tmp_path / "s1.geojson", explanations_of(), 1, 100, TISSUE) == 6
    data = parse(tmp_path / "s1.geojson")
    assert set(data) == {"type", "features"}
    assert data["type"] == "FeatureCollection"
    features: list[dict[str, Any]] = data["features"]
    return features


# --- rules: one feature that violates one of them makes QuPath reject the whole file -----------------------------


def test_every_feature_has_its_own_id_and_closed_rings(written: list[dict[str, Any]]) -> None:
    assert len({uuid.UUID(f["id"]) for f in written}) == len(written) == 7
    for feature in written:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] in {"Polygon", "MultiPolygon"}
        for ring in rings(feature):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
        assert shape(feature["geometry"]).is_valid


def test_nothing_is_null(written: list[dict[str, Any]]) -> None:
    assert None not in list(values(written))


def test_every_classification_has_a_name_and_a_colour(written: list[dict[str, Any]]) -> None:
    classified = [f["properties"]["classification"] for f in written if "classification" in f["properties"]]
    assert classified == [{"name": "Tissue", "color": [0, 160, 0]}]


def test_measurements_are_finite_numbers(written: list[dict[str, Any]]) -> None:
    tiles = [f for f in written if f["properties"]["objectType"] == "tile"]
    assert len(tiles) == 6
    for tile in tiles:
        measurements = tile["properties"]["measurements"]
        assert list(measurements) == ['abmil attention: tumour "<&', 'abmil contribution: tumour "<&']
        for value in measurements.values():
            assert type(value) is float
            assert np.isfinite(value)


def test_objects_are_locked_tiles_and_one_locked_annotation(written: list[dict[str, Any]]) -> None:
    kinds = [(f["properties"]["objectType"], f["properties"]["isLocked"]) for f in written]
    assert kinds == [("annotation", True)] + [("tile", True)] * 6


def test_scores_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    explanations = explanations_of()
    explanations[0].scores[2], explanations[0].scores[3] = np.nan, np.inf
    write_tiles(tmp_path / "a.geojson", explanations, 1, 100, MultiPolygon())
    tiles = parse(tmp_path / "a.geojson")["features"]
    assert [len(t["properties"]["measurements"]) for t in tiles] == [2, 2, 1, 1, 2, 2]


# --- values ------------------------------------------------------------------------------------------------------


def test_coordinates_start_at_the_slides_bounds(written: list[dict[str, Any]]) -> None:
    assert rings(written[1]) == [[[0, 0], [32.25, 0], [32.25, 32.25], [0, 32.25], [0, 0]]]
    assert rings(written[6]) == [[[80, 40], [112.25, 40], [112.25, 72.25], [80, 72.25], [80, 40]]]


def test_our_own_reader_finds_the_tissue_where_it_was(tmp_path: Path) -> None:
    write_tiles(tmp_path / "s1.geojson", explanations_of(), 1, 100, TISSUE)
    name, tissue = read_annotation(tmp_path / "s1.geojson", (100, 200, 700, 500)).regions[0]
    assert name == "Tissue"
    assert shapely.equals(tissue, TISSUE)


def test_measurements_are_the_float32_scores(written: list[dict[str, Any]]) -> None:
    for explanation in explanations_of():
        found = [f["properties"]["measurements"][explanation.label] for f in written[1:]]
        np.testing.assert_array_equal(np.array(found, np.float32), explanation.scores)


def test_the_same_patch_keeps_its_id_and_another_slides_patch_has_another(tmp_path: Path) -> None:
    ids = {}
    for name, slide_id in (("a", "s1"), ("b", "s1"), ("c", "s2")):
        write_tiles(tmp_path / name, explanations_of(slide_id=slide_id), 1, 100, TISSUE)
        ids[name] = [f["id"] for f in parse(tmp_path / name)["features"]]
    assert ids["a"] == ids["b"]
    assert not set(ids["a"]) & set(ids["c"])
    assert {uuid.UUID(i).version for i in ids["a"]} == {5}  # by which the script recognises them
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_of_too_many_tiles_those_with_the_largest_scores_are_kept_and_the_file_states_it(tmp_path: Path) -> None:
    explanations = explanations_of()
    explanations[1].scores[:] = [0.1, -5.0, 0.2, 3.0, 0.0, -0.3]
    assert write_tiles(tmp_path / "a", explanations, 1, 3, TISSUE) == 3
    tissue, *tiles = parse(tmp_path / "a")["features"]
    label = 'abmil contribution: tumour "<&'
    assert [t["properties"]["measurements"][label] for t in tiles] == [-5.0, 3.0, pytest.approx(-0.3)]
    assert tissue["properties"]["name"] == f"Tissue (tiles: the 3 of 6 with the largest |{label}|)"


def test_kept_tiles_by_definition() -> None:
    scores = np.array([1.0, -2.0, 2.0, 0.5, -2.0])
    np.testing.assert_array_equal(kept_tiles(scores, 9), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(kept_tiles(scores, 2), [1, 2])  # ties: the first in the grid
    np.testing.assert_array_equal(kept_tiles(scores, 4), [0, 1, 2, 4])


# --- the loader --------------------------------------------------------------------------------------------------


def test_the_script_replaces_its_own_objects_loads_the_file_and_updates_qupath() -> None:
    text = loader_text()
    calls = ["removeObjects(", "importObjectsFromFile(", "fireHierarchyUpdate()"]
    assert [text.count(call) for call in calls] == [1, 1, 1]
    assert sorted(calls, key=text.index) == calls
    assert "getID().version() == 5" in text
    assert "Measure > Show measurement maps" in text
    for pair in ("()", "[]", "{}"):
        assert text.count(pair[0]) == text.count(pair[1])


def test_the_list_has_the_file_names_that_belong_to_one_slide(tmp_path: Path) -> None:
    rows = [
        SlideRow("one", Path("/a/case 1.svs")),
        SlideRow("two", Path("/a/same.svs")),
        SlideRow("three", Path("/b/same.svs")),
    ]
    assert json.loads(slides_text(rows)) == {"case 1.svs": "one"}
    assert (
        write_loader(rows, output=tmp_path / "view" / "load_into_qupath.groovy", provenance=Provenance.of("k", "view"))
        == 3
    )
    assert (tmp_path / "view" / "slides.json").read_text(encoding="utf-8") == slides_text(rows)
