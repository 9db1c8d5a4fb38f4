"""Masks become outlines that QuPath opens, and outlines become the same masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from shapely.geometry import MultiPolygon, Point, Polygon, box

from wsi_pipeline.read.annotations import read_annotation
from wsi_pipeline.tile.contours import mask_polygons, rasterise, tissue_geojson
from wsi_pipeline.types import Bool, TissueMask

SIDE = (16.03, 15.97)


def blobs(seed: int, shape: tuple[int, int] = (60, 80)) -> Bool:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    mask: Bool = smooth > 0.02
    return mask


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_is_preserved(tissue: Bool) -> None:
    outlines = mask_polygons(TissueMask(tissue, SIDE))
    assert outlines.is_valid
    np.testing.assert_array_equal(rasterise(outlines, tissue.shape, SIDE), tissue)


@pytest.mark.parametrize("seed", range(5))
def test_a_tissue_like_mask_and_its_area_are_preserved(seed: int) -> None:
    tissue = blobs(seed)
    outlines = mask_polygons(TissueMask(tissue, SIDE))
    np.testing.assert_array_equal(rasterise(outlines, tissue.shape, SIDE), tissue)
    assert outlines.area == pytest.approx(tissue.sum() * SIDE[0] * SIDE[1], rel=0.02)


def test_a_block_with_a_hole_has_two_outlines() -> None:
    tissue = np.zeros((8, 10), bool)
    tissue[1:7, 1:9] = True
    tissue[3:5, 4:6] = False
    outlines = mask_polygons(TissueMask(tissue, (10.0, 20.0)))
    piece = outlines.geoms[0]
    assert len(outlines.geoms) == 1
    assert list(piece.bounds) == [10, 20, 90, 140]
    assert [Polygon(hole).bounds for hole in piece.interiors] == [(40, 60, 60, 100)]


def test_the_outline_of_a_mask_full_of_tissue_reaches_the_edge() -> None:
    assert mask_polygons(TissueMask(np.ones((3, 4), bool), (10.0, 10.0))).bounds == (0, 0, 40, 30)


def test_without_tissue_there_is_no_outline() -> None:
    outlines = mask_polygons(TissueMask(np.zeros((3, 4), bool), SIDE))
    assert outlines.is_empty
    assert not rasterise(outlines, (3, 4), SIDE).any()


def test_rasterise_takes_the_pixels_whose_centres_are_inside() -> None:
    hole = box(30, 30, 61, 44).exterior
    area = MultiPolygon([Polygon(box(-20, 12, 95, 77).exterior, [hole]), Point(140, 60).buffer(33)])
    expected = [[area.contains(Point((x + 0.5) * 7, (y + 0.5) * 5)) for x in range(30)] for y in range(25)]
    np.testing.assert_array_equal(rasterise(area, (25, 30), (7.0, 5.0)), expected)


def test_the_geojson_is_valid_for_qupath(tmp_path: Path) -> None:
    outlines = mask_polygons(TissueMask(blobs(1), SIDE))
    data = json.loads(tissue_geojson(outlines, "slide_1", (0, 0, 1000, 1000)))
    assert data["type"] == "FeatureCollection"
    assert len(data["features"]) == len(outlines.geoms) > 1
    for feature in data["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 4
        assert feature["properties"] == {
            "objectType": "annotation",
            "classification": {"name": "Tissue", "color": [0, 160, 0]},
            "isLocked": False,
        }
    assert len({feature["id"] for feature in data["features"]}) == len(data["features"])


def test_the_geojson_is_reproducible_and_specific_to_the_slide() -> None:
    outlines = mask_polygons(TissueMask(blobs(2), SIDE))
    once, again = (tissue_geojson(outlines, "a", (0, 0, 9, 9)) for _ in range(2))
    assert once == again
    assert once != tissue_geojson(outlines, "b", (0, 0, 9, 9))


def test_the_geojson_is_in_qupaths_frame_and_is_read_back(tmp_path: Path) -> None:
    tissue, bounds = blobs(3), (120, 340, 5000, 5000)
    outlines = mask_polygons(TissueMask(tissue, SIDE))
    path = tmp_path / "a.geojson"
    path.write_text(tissue_geojson(outlines, "a", bounds), encoding="utf-8")
    in_file = shapely.from_geojson(path.read_text(encoding="utf-8")).bounds
    assert in_file[0] == pytest.approx(outlines.bounds[0] - 120)
    assert in_file[1] == pytest.approx(outlines.bounds[1] - 340)
    annotation = read_annotation(path, bounds)
    assert annotation.classes == ("Tissue",)
    assert annotation.notes == ()
    np.testing.assert_array_equal(rasterise(annotation.area(), tissue.shape, SIDE), tissue)


def test_without_tissue_the_geojson_is_an_empty_collection() -> None:
    assert json.loads(tissue_geojson(MultiPolygon(), "a", (0, 0, 9, 9))) == {
        "type": "FeatureCollection",
        "features": [],
    }
