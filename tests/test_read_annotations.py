"""Annotations from QuPath's GeoJSON and ASAP's XML, in level-0 pixels of the full slide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from shapely.geometry import MultiPolygon, Polygon, box

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.read.annotations import read_annotation
from wsi_pipeline.read.geojson import from_qupath_frame, to_qupath_frame

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
BOUNDS = (100, 200, 5000, 5000)


def feature(rings: list[Any], name: str | None = None, kind: str = "Polygon") -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def written(folder: Path, data: object) -> Path:
    path = folder / "a.geojson"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def asap(folder: Path, *annotations: str) -> Path:
    path = folder / "a.xml"
    body = "".join(annotations)
    path.write_text(
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{body}</Annotations>'
        f"<AnnotationGroups/></ASAP_Annotations>",
        encoding="utf-8",
    )
    return path


def outline(points: Sequence[tuple[float, float]], group: str, kind: str = "Polygon") -> str:
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
    return (
        f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
    )


# --- GeoJSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"type": "FeatureCollection", "features": [feature([SQUARE], "Tumor")]},
        feature([SQUARE], "Tumor"),
        [feature([SQUARE], "Tumor")],
        feature([[SQUARE]], "Tumor", "MultiPolygon"),
    ],
    ids=["collection", "feature", "list", "multipolygon"],
)
def test_every_form_of_geojson_is_read(tmp_path: Path, data: object) -> None:
    annotation = read_annotation(written(tmp_path, data))
    assert annotation.classes == ("Tumor",)
    assert annotation.area().equals(MultiPolygon([box(0, 0, 10, 10)]))
    assert annotation.notes == ()


def test_bare_geometries_have_no_class(tmp_path: Path) -> None:
    polygon = {"type": "Polygon", "coordinates": [SQUARE]}
    for data in (polygon, {"type": "GeometryCollection", "geometries": [polygon]}):
        annotation = read_annotation(written(tmp_path, data))
        assert annotation.classes == ("",)
        assert annotation.area().area == 100


def test_holes_stay_holes(tmp_path: Path) -> None:
    hole = [[2, 2], [2, 4], [4, 4], [4, 2], [2, 2]]
    assert read_annotation(written(tmp_path, feature([SQUARE, hole]))).area().area == 96


def test_qupaths_other_spellings_of_a_class_are_read(tmp_path: Path) -> None:
    plain, derived = feature([SQUARE]), feature([SQUARE])
    plain["properties"]["classification"] = "Stroma"
    derived["properties"]["classification"] = {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}
    assert read_annotation(written(tmp_path, [plain, derived])).classes == ("Stroma", "Tumor: Positive")


def test_the_origin_of_geojson_is_the_bounds_as_in_qupath(tmp_path: Path) -> None:
    annotation = read_annotation(written(tmp_path, feature([SQUARE])), BOUNDS)
    assert annotation.area().bounds == (100, 200, 110, 210)


def test_the_conversions_between_the_two_frames_are_inverse() -> None:
    shape = box(150, 260, 170, 280)
    assert to_qupath_frame(shape, BOUNDS).bounds == (50, 60, 70, 80)
    assert from_qupath_frame(to_qupath_frame(shape, BOUNDS), BOUNDS).equals(shape)


def test_exclusions_are_subtracted_and_classes_selected(tmp_path: Path) -> None:
    def square(x: float, side: float) -> list[list[float]]:
        return [[x, 0], [x + side, 0], [x + side, side], [x, side], [x, 0]]

    path = written(
        tmp_path,
        [
            feature([square(0, 10)], "Tumor"),
            feature([square(5, 10)], "tumor"),
            feature([square(50, 10)], "Stroma"),
            feature([square(0, 2)], "exclusion"),
        ],
    )
    annotation = read_annotation(path)
    assert annotation.area().area == 150 + 100 - 4
    assert annotation.area(["Tumor"]).area == 150 - 4
    assert annotation.area(["Tumor"], exclude=()).area == 150
    assert annotation.area(["Exclusion"]).area == 4
    assert annotation.area(["Necrosis"]).is_empty


def test_a_self_intersecting_outline_is_repaired_and_noted(tmp_path: Path) -> None:
    bow_tie = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    annotation = read_annotation(written(tmp_path, feature([bow_tie], "Tumor")))
    assert annotation.area().area == pytest.approx(50)
    assert annotation.notes == ("region 1 (Tumor): invalid (Self-intersection[5 5]), repaired",)


def test_points_and_lines_are_left_out_and_noted(tmp_path: Path) -> None:
    annotation = read_annotation(written(tmp_path, [feature([1, 2], "x", "Point"), feature([SQUARE])]))
    assert annotation.area().area == 100
    assert annotation.notes == ("region 1 (x): a Point without area, left out",)


def test_without_features_there_are_no_regions(tmp_path: Path) -> None:
    annotation = read_annotation(written(tmp_path, {"type": "FeatureCollection", "features": []}))
    assert annotation.regions == ()
    assert annotation.area().is_empty


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{",
        "[1, 2]",
        '{"type": "FeatureCollection"}',
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}',
        '{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 3], [0, 0]]]}',
        '{"type": "Polygon", "coordinates": [[[NaN, 0], [1, 1], [2, 3], [NaN, 0]]]}',
        '{"type": "Polygon", "coordinates": 7}',
        '{"type": "Cube", "coordinates": [[0, 0]]}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_an_invalid_geojson_is_reported_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.geojson") as caught:
        read_annotation(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_annotation(tmp_path / "gone.geojson")


# --- ASAP ----------------------------------------------------------------------------------------------------

CORNERS = [(0.5, 0.5), (10.5, 0.5), (10.5, 10.5), (0.5, 10.5)]


@pytest.mark.parametrize("kind", ["Polygon", "Spline", "Rectangle"])
def test_asap_outlines_have_their_group_as_class(tmp_path: Path, kind: str) -> None:
    annotation = read_annotation(asap(tmp_path, outline(CORNERS, "_0", kind)))
    assert annotation.classes == ("_0",)
    assert annotation.area().equals(MultiPolygon([Polygon(CORNERS)]))


def test_the_origin_of_asap_is_the_full_slides_corner(tmp_path: Path) -> None:
    assert read_annotation(asap(tmp_path, outline(CORNERS, "_0")), BOUNDS).area().bounds == (0.5, 0.5, 10.5, 10.5)


def test_camelyons_group_2_is_a_hole(tmp_path: Path) -> None:
    hole = [(2, 2), (4, 2), (4, 4), (2, 4)]
    for group in ("_2", "Exclusion"):
        annotation = read_annotation(asap(tmp_path, outline(CORNERS, "_0"), outline(hole, group)))
        assert annotation.area().area == 96
        assert annotation.classes == tuple(sorted(("_0", group)))


def test_vertices_follow_their_order_attribute_not_the_file(tmp_path: Path) -> None:
    shuffled = outline(CORNERS, "None").replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"')
    annotation = read_annotation(asap(tmp_path, shuffled.replace('Order="x"', 'Order="2"')))
    assert annotation.classes == ("",)
    assert annotation.area().area == pytest.approx(50)  # crossed: (0,0) (10,10) (10,0) (0,10)
    assert "repaired" in annotation.notes[0]


def test_dots_rulers_and_stray_clicks_are_left_out(tmp_path: Path) -> None:
    annotation = read_annotation(
        asap(
            tmp_path,
            outline(CORNERS[:1], "_0", "Dot"),
            outline(CORNERS, "_0", "PointSet"),
            outline(CORNERS[:2], "_0"),
            outline(CORNERS, "_1"),
        )
    )
    assert annotation.classes == ("_1",)
    assert len(annotation.notes) == 3


@pytest.mark.parametrize(
    "text",
    [
        "<a/>",
        "<ASAP_Annotations>",
        '<ASAP_Annotations><Annotation><Coordinate Order="0" X="1"/></Annotation></ASAP_Annotations>',
        '<ASAP_Annotations><Annotation><Coordinate Order="0" X="1" Y="x"/></Annotation></ASAP_Annotations>',
        '<!DOCTYPE a [<!ENTITY b "bbbb">]><ASAP_Annotations>&b;</ASAP_Annotations>',
    ],
)
def test_an_invalid_xml_is_reported_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.xml") as caught:
        read_annotation(tmp_path / "a.xml")
    assert "\n" not in str(caught.value)
