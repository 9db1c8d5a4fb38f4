"""The stores: the rules that other programs' readers impose, and the values that three of them read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from defusedxml.ElementTree import fromstring

from wsi_pipeline import pipeline
from wsi_pipeline.artifacts import Provenance, read_key
from wsi_pipeline.config import Config, HeatmapConfig
from wsi_pipeline.engine import Engine
from wsi_pipeline.errors import ArtifactError, ConfigError
from wsi_pipeline.geometry import grid_corners_px0
from wsi_pipeline.heatmap import halve, paint_block
from wsi_pipeline.heatmap.metadata import signed_rgba
from wsi_pipeline.heatmap.ngff import read_heatmap, write_heatmap
from wsi_pipeline.heatmap.pyramid import fill
from wsi_pipeline.heatmap.sources import model_labels, source_finder
from wsi_pipeline.project import Project
from wsi_pipeline.store import write_explanations
from wsi_pipeline.types import Explanation, PatchGrid, SlideRow

SIZE = (9000, 11007)  # width, height: 282 x 344 cells of 32, in one chunk of 512 and several of 100
SIDE = 448.3
LABELS = ("abmil attention: tumour", "abmil contribution: tumour")


def grid_of(slide_id: str = "s1", size: tuple[int, int] = SIZE, side: float = SIDE) -> PatchGrid:
    columns, rows = grid_corners_px0(size, (side, side), (side, side))
    xy = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    xy = xy[np.random.default_rng(0).random(len(xy)) < 0.6]
    return PatchGrid(slide_id, xy, 224, (side, side), (side, side), 0.5, (0.25, 0.26), size, (0, 0, *size))


def explanations_of(grid: PatchGrid, target: str = "tumour") -> list[Explanation]:
    rng = np.random.default_rng(3)
    attention = rng.dirichlet(np.ones(len(grid))).astype(np.float32)
    contribution = rng.normal(size=len(grid)).astype(np.float32)
    return [
        Explanation(grid, attention, "attention", "abmil", target, "attention", False),
        Explanation(grid, contribution, "contribution", "abmil", target, "attribution", True),
    ]


def write(path: Path, ngff: Literal["0.4", "0.5"] = "0.4", chunk: int = 512, grid: PatchGrid | None = None) -> Path:
    grid = grid or grid_of()
    config = HeatmapConfig(ngff=ngff, chunk=chunk)
    write_heatmap(path, explanations_of(grid), config, Provenance.of("k1", "heatmap"))
    return path


@pytest.fixture(scope="module")
def store04(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("v04") / "s1.ome.zarr")


@pytest.fixture(scope="module")
def store05(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("v05") / "s1.ome.zarr", "0.5")


def attributes(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def values(data: object) -> Iterator[object]:
    """Every value of a JSON document, at any depth."""
    yield data
    if isinstance(data, dict):
        for value in data.values():
            yield from values(value)
    elif isinstance(data, list):
        for value in data:
            yield from values(value)


# --- requirements of the readers -------------------------------------------------------------------------------


def test_qupath_opens_zarr_2_with_blosc_float32_and_slash_separators(store04: Path) -> None:
    assert attributes(store04 / ".zgroup") == {"zarr_format": 2}
    assert attributes(store04 / "OME" / ".zgroup") == {"zarr_format": 2}
    assert not list(store04.rglob("zarr.json"))
    for level in ("0", "1"):
        array = attributes(store04 / level / ".zarray")
        assert array["zarr_format"] == 2
        assert array["dtype"] == "<f4"
        assert array["fill_value"] == "NaN"
        assert array["order"] == "C"
        assert array["chunks"] == [1, 512, 512]
        assert array["dimension_separator"] == "/"
        compressor = array["compressor"]
        assert {k: compressor[k] for k in ("id", "cname", "clevel", "shuffle")} == {
            "id": "blosc",
            "cname": "zstd",
            "clevel": 5,
            "shuffle": 1,
        }
    assert (store04 / "0" / "0" / "0" / "0").is_file()


def test_the_stores_name_ends_in_zarr_and_no_folder_above_or_below_has_one(store04: Path, tmp_path: Path) -> None:
    assert store04.name == "s1.ome.zarr"
    assert not [p for p in store04.rglob("*") if ".zarr" in p.name and p.name != ".zarray"]
    with pytest.raises(ConfigError, match=r"contains '\.zarr'"):
        write(tmp_path / "run.zarr" / "heatmap" / "s1.ome.zarr")


def test_multiscales_start_at_the_slides_corner(store04: Path) -> None:
    (scales,) = attributes(store04 / ".zattrs")["multiscales"]
    assert scales["version"] == "0.4"
    assert scales["type"] == "nanmean"
    assert scales["axes"] == [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    assert [d["path"] for d in scales["datasets"]] == ["0", "1"]
    for level, dataset in enumerate(scales["datasets"]):
        scale, translation = dataset["coordinateTransformations"]  # this order
        side = 32 * 2**level
        assert scale == {"type": "scale", "scale": pytest.approx([1, 0.26 * side, 0.25 * side])}
        shift = [0, 0.26 * (side - 1) / 2, 0.25 * (side - 1) / 2]
        assert translation == {"type": "translation", "translation": pytest.approx(shift)}


def test_cells_are_at_most_32_pixels_and_the_raster_covers_the_whole_slide(store04: Path) -> None:
    assert attributes(store04 / ".zattrs")["heatmap"]["cell_px0"] == 32
    assert attributes(store04 / "0" / ".zarray")["shape"] == [2, 344, 282]  # ceil(11007 / 32), ceil(9000 / 32)
    assert attributes(store04 / "1" / ".zarray")["shape"] == [2, 172, 141]


def test_no_attribute_contains_a_json_null(store04: Path, store05: Path) -> None:
    written = [*store04.rglob(".zattrs"), *store05.rglob("zarr.json")]
    assert len(written) >= 6
    for path in written:
        assert None not in list(values(attributes(path))), path
    for path in store04.rglob(".zarray"):  # the Zarr 2 specification requires this null
        assert [k for k, v in attributes(path).items() if v is None] == ["filters"]


def test_every_channel_has_a_window_and_signed_ones_are_symmetric(store04: Path) -> None:
    channels = attributes(store04 / ".zattrs")["omero"]["channels"]
    assert [c["label"] for c in channels] == list(LABELS)
    assert [c["active"] for c in channels] == [False, True]
    for channel in channels:
        assert len(bytes.fromhex(channel["color"])) == 3
        window = channel["window"]
        assert set(window) == {"min", "max", "start", "end"}
        assert window["min"] <= window["start"] < window["end"] <= window["max"]
    signed = channels[1]["window"]
    assert signed["start"] == -signed["end"]
    assert signed["min"] == -signed["max"]


def test_the_ome_xml_has_pixel_size_names_and_colours(store04: Path) -> None:
    assert attributes(store04 / "OME" / ".zattrs") == {"series": ["0"]}
    data = (store04 / "OME" / "METADATA.ome.xml").read_bytes()
    assert 'PhysicalSizeXUnit="µm"' in data.decode("utf-8")
    space = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    root = fromstring(data)
    assert root.tag == f"{{{space['o']}}}OME"
    (image,) = root.findall("o:Image", space)
    (pixels,) = image.findall("o:Pixels", space)
    expected = {"Type": "float", "SizeX": "282", "SizeY": "344", "SizeC": "2", "SizeZ": "1", "SizeT": "1"}
    assert {k: pixels.get(k) for k in expected} == expected
    assert [float(pixels.attrib[f"PhysicalSize{a}"]) for a in "XY"] == pytest.approx([8.0, 8.32])
    assert (pixels.get("PhysicalSizeXUnit"), pixels.get("PhysicalSizeYUnit")) == ("µm", "µm")
    channels = pixels.findall("o:Channel", space)
    assert [c.get("Name") for c in channels] == list(LABELS)
    assert all(-(2**31) <= int(c.attrib["Color"]) < 2**31 for c in channels)
    assert len(pixels.findall("o:MetadataOnly", space)) == 1


def test_colours_are_signed_rgba() -> None:
    assert signed_rgba("FF0000") == -16776961
    assert signed_rgba("0000FF") == 65535


def test_ngff_05_is_zarr_3_with_dimension_names_and_one_version(store05: Path) -> None:
    ome = attributes(store05 / "zarr.json")["attributes"]["ome"]
    assert ome["version"] == "0.5"
    assert "version" not in ome["multiscales"][0]
    assert len(ome["omero"]["channels"]) == 2
    assert not list(store05.rglob(".z*"))
    for level in ("0", "1"):
        array = attributes(store05 / level / "zarr.json")
        assert array["dimension_names"] == ["c", "y", "x"]
        assert array["data_type"] == "float32"
        assert array["fill_value"] == "NaN"


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_the_key_is_in_the_store(ngff: Literal["0.4", "0.5"], tmp_path: Path) -> None:
    assert read_key(write(tmp_path / "a.ome.zarr", ngff)) == "k1"


def test_names_that_are_not_valid_xml_are_escaped_or_replaced(tmp_path: Path) -> None:
    grid, path = grid_of("<a&b>"), tmp_path / "x.ome.zarr"
    config, provenance = HeatmapConfig(), Provenance.of("k", "heatmap")
    write_heatmap(path, explanations_of(grid, '<t>"&\x01'), config, provenance)
    image = fromstring((path / "OME" / "METADATA.ome.xml").read_bytes())[0]
    assert image.get("Name") == "<a&b>"
    assert image[0][0].get("Name") == 'abmil attention: <t>"&\ufffd'


# --- values, as our reader and three others read them ----------------------------------------------------------


def test_level_0_is_painted_and_each_level_halves_the_one_below(tmp_path: Path) -> None:
    grid = grid_of(size=(40_000, 20_001))
    pyramid = read_heatmap(write(tmp_path / "s1.ome.zarr", chunk=100, grid=grid))
    assert pyramid.shapes == ((626, 1250), (313, 625), (157, 313), (79, 157))
    scores = np.stack([e.scores for e in explanations_of(grid)])
    expected = paint_block(grid, scores, 32, 0, 0, 626, 1250)
    for level in range(4):
        found = np.stack([pyramid.read(c, level) for c in (0, 1)])
        np.testing.assert_array_equal(found, expected)
        expected = halve(expected)


@pytest.mark.parametrize("version", ["04", "05"])
def test_three_other_readers_find_the_scores_at_the_patches_centres(
    version: str, request: pytest.FixtureRequest
) -> None:
    import ngff_zarr
    import ome_zarr_models
    import tensorstore

    path: Path = request.getfixturevalue(f"store{version}")
    ome_zarr_models.open_ome_zarr(zarr.open_group(str(path), mode="r"))
    multiscales = ngff_zarr.from_ngff_zarr(str(path), validate=True)
    assert multiscales.images[0].scale == pytest.approx({"c": 1.0, "y": 8.32, "x": 8.0})
    driver = {"04": "zarr", "05": "zarr3"}[version]
    kvstore = {"driver": "file", "path": str(path / "0")}
    by_tensorstore = tensorstore.open({"driver": driver, "kvstore": kvstore}, read=True).result().read().result()
    by_ngff_zarr = np.asarray(multiscales.images[0].data)
    np.testing.assert_array_equal(by_tensorstore, by_ngff_zarr)
    grid = grid_of()
    x, y = (grid.centre_px0 // 32).astype(int).T
    for channel, explanation in enumerate(explanations_of(grid)):
        np.testing.assert_array_equal(by_tensorstore[channel][y, x], explanation.scores)
    assert np.isnan(by_tensorstore).any()


def test_reading_gives_channels_and_the_level_for_a_resolution(store04: Path, store05: Path) -> None:
    for path in (store04, store05):
        pyramid = read_heatmap(path)
        assert (pyramid.slide_id, pyramid.slide_size_px0, pyramid.cell_px0) == ("s1", SIZE, 32)
        assert [c.label for c in pyramid.channels] == list(LABELS)
        assert [(c.unit, c.signed) for c in pyramid.channels] == [("attention", False), ("attribution", True)]
        assert [pyramid.level_for(px0) for px0 in (1, 32, 63, 64, 1000)] == [0, 0, 0, 1, 1]


def test_the_error_for_a_file_that_is_not_a_heatmap_names_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the heatmap .*none\.ome\.zarr does not exist; run `wsi heatmap`"):
        read_heatmap(tmp_path / "none.ome.zarr")
    zarr.create_group(str(tmp_path / "other.zarr"), zarr_format=2)
    with pytest.raises(ArtifactError, match=r"other\.zarr is not a heatmap written by"):
        read_heatmap(tmp_path / "other.zarr")


def test_a_heatmap_of_another_schema_is_refused(store04: Path, tmp_path: Path) -> None:
    old = shutil.copytree(store04, tmp_path / "old.ome.zarr")
    attributes = json.loads((old / ".zattrs").read_text())
    attributes["wsi_pipeline"]["schema"] = 1
    (old / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(ArtifactError, match="written with schema 1, this version reads 2"):
        read_heatmap(old)


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    def digests(path: Path) -> dict[str, str]:
        files = (p for p in sorted(path.rglob("*")) if p.is_file())
        return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    first = digests(write(tmp_path / "a" / "s1.ome.zarr", chunk=100))
    assert len(first) > 20
    assert first == digests(write(tmp_path / "b" / "s1.ome.zarr", chunk=100))


def test_memory_depends_on_the_chunk(tmp_path: Path) -> None:
    side = 320.0
    columns = np.arange(0, 65_536, 2048)
    xy = np.stack(np.meshgrid(columns, columns), axis=-1).reshape(-1, 2)
    size = (65_536, 65_536)
    grid = PatchGrid("s", xy, 224, (side, side), (side, side), 0.5, (0.25, 0.25), size, (0, 0, *size))
    scores = np.ones((1, len(grid)), np.float32)
    group = zarr.create_group(str(tmp_path / "g.zarr"), zarr_format=2)
    shapes = [(1, n, n) for n in (2048, 1024)]  # 16.8 MB and 4.2 MB
    levels = [
        group.create_array(str(i), shape=s, chunks=(1, 256, 256), dtype="<f4", fill_value=float("nan"))
        for i, s in enumerate(shapes)
    ]
    fill(levels, grid, scores, 32)  # imports and caches are not counted
    tracemalloc.start()
    fill(levels, grid, scores, 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def test_explanations_of_different_patches_are_rejected(tmp_path: Path) -> None:
    one, other = explanations_of(grid_of())[0], explanations_of(grid_of(side=500.0))[1]
    with pytest.raises(ArtifactError, match="slide s1 have different patches"):
        write_heatmap(tmp_path / "a.ome.zarr", [one, other], HeatmapConfig(), Provenance.of("k", "heatmap"))
    assert list(tmp_path.iterdir()) == []


# --- the stage --------------------------------------------------------------------------------------------------


def project_of(tmp_path: Path, ids: tuple[str, ...], **sections: Any) -> Project:
    config = Config(slides=tmp_path / "slides.csv", out=tmp_path / "run", **sections)
    rows = tuple(SlideRow(i, tmp_path / f"{i}.svs") for i in ids)
    return Project(config, rows, rows)


def explain(project: Project, slide_id: str, key: str = "e", model: str = "abmil") -> None:
    for e in explanations_of(grid_of(slide_id, (3000, 2000))):
        path = project.folder.explanation(model, e.method, slide_id)
        write_explanations(path, [e], Provenance.of(key, "explain"))


def run_stage(project: Project) -> list[tuple[str, str]]:
    with Engine(project.config.engine, project.config.out) as engine:
        pipeline.run_stage("heatmap", project, engine)
        return [(f.slide_id, f.message) for f in engine.failures]


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): os.stat(p).st_mtime_ns for p in folder.rglob("*")}


def test_channels_are_in_the_order_of_the_config(tmp_path: Path) -> None:
    project = project_of(tmp_path, ("a",), explain={"methods": ["contribution", "instance", "attention"]})
    explain(project, "a")
    assert run_stage(project) == []
    channels = read_heatmap(project.folder.heatmap("a")).channels
    assert [c.method for c in channels] == ["contribution", "attention"]


def test_with_a_given_model_the_maps_of_the_predicting_models_are_shown(tmp_path: Path) -> None:
    project = project_of(tmp_path, ("a",), predict={"model": tmp_path / "model"})
    for model in ("mean", "transmil"):  # "mean" remains from an earlier run
        explain(project, "a", model=model)
    assert model_labels(project) == ["mean", "transmil"]
    project.folder.predictions.parent.mkdir()
    project.folder.predictions.write_text("slide_id,model\na,transmil\n")
    assert model_labels(project) == ["transmil"]
    assert [(s.model, s.method) for s in source_finder(project)("a")] == [
        ("transmil", "attention"),
        ("transmil", "contribution"),
    ]


def test_a_second_run_touches_no_file_and_a_new_explanation_rebuilds_its_slide_alone(tmp_path: Path) -> None:
    project = project_of(tmp_path, ("a", "b"))
    explain(project, "a")
    explain(project, "b")
    assert run_stage(project) == []
    before = stamps(project.folder.root / "heatmap")
    assert run_stage(project) == []
    assert stamps(project.folder.root / "heatmap") == before
    explain(project, "b", key="e2")
    assert run_stage(project) == []
    after = stamps(project.folder.root / "heatmap")
    a, b = (str(project.folder.heatmap(i) / ".zattrs") for i in "ab")
    assert after[a] == before[a]
    assert after[b] != before[b]


def test_a_slide_without_explanation_fails_alone(tmp_path: Path) -> None:
    project = project_of(tmp_path, ("a", "b"))
    explain(project, "b")
    ((slide_id, message),) = run_stage(project)
    assert slide_id == "a"
    assert message.endswith("a.h5 is not there; run `wsi explain` first")
    assert project.folder.heatmap("b").exists()
