"""The stage as a user sees it: what it writes, what it repeats, and whose outlines are used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from shapely.geometry import box
from test_read_slide import damage_tile

from wsi_pipeline import artifacts, store
from wsi_pipeline.config import Config, TileConfig
from wsi_pipeline.demo import draw_slide
from wsi_pipeline.engine import Engine, Failure
from wsi_pipeline.errors import SlideError, WsiError
from wsi_pipeline.geometry import box_fractions
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project, RunFolder
from wsi_pipeline.read import open_slide
from wsi_pipeline.tile import stage
from wsi_pipeline.tile.outlines import edited_digest, write_outlines
from wsi_pipeline.types import Slide, SlideRow

BASE: dict[str, Any] = {"side_px": 100}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide_1.tif"
    draw_slide(path, seed=1, side_px=1500)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def tile(out: Path, slides: Iterable[Path], **options: Any) -> list[Failure]:
    config = Config(slides=out / "none.csv", out=out, tile=TileConfig(**{**BASE, **options}))
    rows = tuple(SlideRow(path.stem, path) for path in slides)
    with Engine(config.engine, out) as engine:
        run_stage("tile", Project(config, rows, rows), engine)
    return engine.failures


def listing(out: Path) -> dict[str, tuple[int, int, bytes]]:
    """Name -> (inode, modification time, bytes) of every file."""
    return {
        str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


def contents(out: Path) -> dict[str, bytes]:
    return {name: data for name, (_, _, data) in listing(out).items()}


def made_by(out: Path, slide_id: str = "slide_1") -> dict[str, Any]:
    import h5py

    with h5py.File(RunFolder(out).grid(slide_id)) as file:
        made: dict[str, Any] = json.loads(file.attrs["made_by"])
        return made


def square(x: float, y: float, side: float, name: str = "Tissue") -> str:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}},
    }
    return json.dumps({"type": "FeatureCollection", "features": [feature]})


def test_it_writes_grid_outlines_and_image(drawn: Path, out: Path) -> None:
    assert tile(out, [drawn]) == []
    assert [name for name in contents(out) if ".made" not in name] == [
        "tile/quality/slide_1.jpg",
        "tile/slide_1.h5",
        "tile/tissue/slide_1.geojson",
    ]
    grid, mask = store.read_grid(RunFolder(out).grid("slide_1"))
    assert mask.side_px0 == pytest.approx((16, 16))
    assert grid.side_px0 == pytest.approx((100, 100))
    fractions = box_fractions(mask.tissue, mask.side_px0, grid.xy_px0, grid.side_px0)
    assert fractions.min() >= 0.5
    assert len(grid) > 40
    assert made_by(out)["tissue"] == "detected"
    outlines = shapely.from_geojson(RunFolder(out).tissue("slide_1").read_text(encoding="utf-8"))
    assert outlines.area == pytest.approx(mask.tissue.sum() * 256, rel=0.03)
    with Image.open(RunFolder(out).quality("slide_1")) as picture:
        assert picture.width == 1500
        green = np.asarray(picture.convert("RGB")).astype(int)
    assert ((green[..., 1] > 120) & (green[..., 0] < 60) & (green[..., 2] < 60)).sum() > 1000  # outlines are drawn


def test_a_second_run_changes_no_file(drawn: Path, out: Path) -> None:
    tile(out, [drawn])
    before = listing(out)
    tile(out, [drawn])
    assert listing(out) == before


def test_another_folder_gets_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    tile(tmp_path / "a", [drawn])
    tile(tmp_path / "b", [drawn])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_deleted_outline_or_image_is_written_again(drawn: Path, out: Path) -> None:
    tile(out, [drawn])
    before = contents(out)
    for path in (RunFolder(out).tissue("slide_1"), RunFolder(out).quality("slide_1")):
        path.unlink()
        tile(out, [drawn])
        assert contents(out) == before


def test_an_option_changes_the_key_and_the_outlines(drawn: Path, out: Path) -> None:
    tile(out, [drawn])
    key, outlines = artifacts.read_key(RunFolder(out).grid("slide_1")), RunFolder(out).tissue("slide_1").read_bytes()
    tile(out, [drawn], detector_options={"min_hole_um2": 0})
    assert artifacts.read_key(RunFolder(out).grid("slide_1")) != key
    assert RunFolder(out).tissue("slide_1").read_bytes() != outlines
    assert made_by(out)["tissue"] == "detected"
    tile(out, [drawn])
    assert artifacts.read_key(RunFolder(out).grid("slide_1")) == key
    assert RunFolder(out).tissue("slide_1").read_bytes() == outlines


# --- edited outlines -----------------------------------------------------------------------------------------


def test_edited_outlines_are_used_as_tissue_and_kept(drawn: Path, out: Path) -> None:
    tile(out, [drawn])
    before = contents(out)
    path = RunFolder(out).tissue("slide_1")
    path.write_text(square(400, 208, 320), encoding="utf-8")
    edited = path.read_bytes()
    for options in ({}, {"detector_options": {"min_hole_um2": 0}}, {"min_tissue": 1.0}):
        assert tile(out, [drawn], **options) == []
        grid, mask = store.read_grid(RunFolder(out).grid("slide_1"))
        np.testing.assert_array_equal(np.argwhere(mask.tissue)[[0, -1]], [[13, 25], [32, 44]])
        assert mask.tissue.sum() == 20 * 20
        assert path.read_bytes() == edited
        assert made_by(out)["tissue"] == "edited"
    assert grid.xy_px0.tolist() == [[x, y] for y in (300, 400) for x in (400, 500, 600)]
    path.unlink()
    tile(out, [drawn])
    assert contents(out) == before


def test_outlines_drawn_before_the_first_run_are_used(drawn: Path, out: Path) -> None:
    path = RunFolder(out).tissue("slide_1")
    path.parent.mkdir(parents=True)
    path.write_text(square(0, 0, 480), encoding="utf-8")
    tile(out, [drawn])
    assert made_by(out)["tissue"] == "edited"
    assert store.read_grid(RunFolder(out).grid("slide_1"))[1].tissue.sum() == 30 * 30


def test_a_repair_of_the_users_outlines_is_noted(drawn: Path, out: Path) -> None:
    path = RunFolder(out).tissue("slide_1")
    path.parent.mkdir(parents=True)
    path.write_text('{"type":"Polygon","coordinates":[[[0,0],[900,900],[900,0],[0,900],[0,0]]]}', encoding="utf-8")
    tile(out, [drawn])
    assert "Self-intersection" in made_by(out)["notes"][0]


def test_invalid_outlines_stop_the_run_and_are_kept(drawn: Path, out: Path) -> None:
    tile(out, [drawn])
    path = RunFolder(out).tissue("slide_1")
    path.write_text('{"type": "FeatureCollection"', encoding="utf-8")
    for _ in range(2):
        with pytest.raises(WsiError, match=r"slide_1\.geojson cannot be used.*delete the file"):
            tile(out, [drawn])
        assert path.read_text(encoding="utf-8") == '{"type": "FeatureCollection"'


def test_after_a_killed_run_no_outlines_are_mistaken_for_the_users(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_outlines(path, "first", "key")
    old = artifacts.file_digest(path)
    record = artifacts.Provenance.of("key", "tile", written=["the new digest", old])
    artifacts.write_provenance(path, record)  # the record is written, then the program is killed
    assert edited_digest(path) is None
    write_outlines(path, "second", "key")
    assert path.read_text(encoding="utf-8") == "second"
    assert edited_digest(path) is None
    path.write_text("first", encoding="utf-8")
    assert edited_digest(path) == old  # outlines of an earlier run that the user restored are the user's


def test_outlines_edited_during_the_run_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_outlines(path, "ours", "key")
    path.write_text("theirs", encoding="utf-8")
    with pytest.raises(SlideError, match="run again"):
        write_outlines(path, "ours again", "key")
    assert path.read_text(encoding="utf-8") == "theirs"


def test_outlines_are_written_and_read_in_qupaths_frame(
    drawn: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile(out, [drawn])
    path = RunFolder(out).tissue("slide_1")
    plain = shapely.from_geojson(path.read_text(encoding="utf-8"))

    def with_bounds(*args: Any) -> Slide:
        slide = open_slide(*args)
        slide.bounds_px0 = (160, 80, 1200, 1200)
        return slide

    monkeypatch.setattr(stage, "open_slide", with_bounds)
    tile(out, [drawn], min_tissue=0.6)
    shifted = shapely.from_geojson(path.read_text(encoding="utf-8"))
    assert np.subtract(plain.bounds, shifted.bounds) == pytest.approx([160, 80, 160, 80])
    path.write_text(square(0, 0, 160), encoding="utf-8")
    tile(out, [drawn])
    mask = store.read_grid(RunFolder(out).grid("slide_1"))[1]
    np.testing.assert_array_equal(np.argwhere(mask.tissue)[[0, -1]], [[5, 10], [14, 19]])


# --- region of interest --------------------------------------------------------------------------------------


def test_only_patches_in_the_region_of_interest_are_kept(drawn: Path, out: Path, tmp_path: Path) -> None:
    tile(out, [drawn])
    whole, tissue = store.read_grid(RunFolder(out).grid("slide_1"))
    roi = tmp_path / "roi.geojson"
    roi.write_text(square(300, 300, 640, "Tumor"), encoding="utf-8")
    assert tile(out, [drawn], roi=roi) == []
    grid, mask = store.read_grid(RunFolder(out).grid("slide_1"))
    inside = np.zeros_like(tissue.tissue)
    inside[19:59, 19:59] = True  # centres of 16-px0 pixels between 300 and 940
    np.testing.assert_array_equal(mask.tissue, tissue.tissue & inside)
    assert 0 < len(grid) < len(whole)
    assert {tuple(xy) for xy in grid.xy_px0.tolist()} < {tuple(xy) for xy in whole.xy_px0.tolist()}
    for x, y in grid.xy_px0.tolist():
        assert box(x, y, x + 100, y + 100).intersection(box(300, 300, 940, 940)).area >= 0.45 * 100 * 100


def test_the_key_depends_on_the_regions_content_and_not_on_its_path(drawn: Path, out: Path, tmp_path: Path) -> None:
    keys = []
    for name, x in (("a", 300), ("b", 300), ("b", 400)):
        roi = tmp_path / f"{name}.geojson"
        roi.write_text(square(x, 300, 640), encoding="utf-8")
        tile(out, [drawn], roi=roi)
        keys.append(artifacts.read_key(RunFolder(out).grid("slide_1")))
    assert keys[0] == keys[1] != keys[2]


def test_a_folder_of_regions_must_contain_one_for_the_slide(drawn: Path, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rois"
    folder.mkdir()
    (failure,) = tile(out, [drawn], roi=folder)
    assert (failure.slide_id, failure.error) == ("slide_1", "SlideError")
    assert "slide_1.geojson does not exist" in failure.message
    (folder / "slide_1.geojson").write_text(square(300, 300, 640), encoding="utf-8")
    assert tile(out, [drawn], roi=folder) == []


def test_a_class_without_a_region_is_reported(drawn: Path, out: Path, tmp_path: Path) -> None:
    roi = tmp_path / "roi.geojson"
    roi.write_text(square(300, 300, 640, "Tumor"), encoding="utf-8")
    (failure,) = tile(out, [drawn], roi=roi, roi_class="Necrosis")
    assert "has no region of class 'Necrosis' (tile.roi_class); its classes are: 'Tumor'" in failure.message
    assert tile(out, [drawn], roi=roi, roi_class="tumor") == []


def test_a_missing_region_file_stops_the_run(drawn: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(WsiError, match=r"gone\.geojson"):
        tile(out, [drawn], roi=tmp_path / "gone.geojson")


# --- slides that fail ----------------------------------------------------------------------------------------


def glass(path: Path) -> Path:
    pixels = np.full((600, 600, 3), 244, np.uint8) + np.random.default_rng(0).integers(0, 4, (600, 600, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path, resolution_unit=3, x_resolution=2e4, y_resolution=2e4)
    return path


def test_an_empty_slide_is_listed_and_the_others_are_tiled(drawn: Path, out: Path, tmp_path: Path) -> None:
    empty = glass(tmp_path / "empty.tif")
    (failure,) = tile(out, [empty, drawn])
    assert (failure.slide_id, failure.error) == ("empty", "EmptySlideError")
    assert failure.message.startswith("empty has no tissue; look at tile/quality/empty.jpg")
    assert RunFolder(out).quality("empty").exists()
    assert not RunFolder(out).grid("empty").exists()
    assert RunFolder(out).grid("slide_1").exists()
    before = listing(out)
    tile(out, [empty, drawn])
    assert listing(out) == before
    RunFolder(out).tissue("empty").write_text(square(100, 100, 300), encoding="utf-8")  # the user's correction
    assert tile(out, [empty, drawn]) == []
    assert len(store.read_grid(RunFolder(out).grid("empty"))[0]) > 0


def test_a_missing_slide_fails_and_the_others_are_tiled(drawn: Path, out: Path, tmp_path: Path) -> None:
    (failure,) = tile(out, [tmp_path / "gone.svs", drawn])
    assert (failure.slide_id, failure.error) == ("gone", "SlideError")
    assert "does not exist" in failure.message
    assert RunFolder(out).grid("slide_1").exists()


def test_a_slide_coarser_than_the_target_fails(drawn: Path, out: Path) -> None:
    (failure,) = tile(out, [drawn], mpp=0.25)
    assert (failure.error, RunFolder(out).grid("slide_1").exists()) == ("SlideError", False)
    assert "--set tile.mpp=0.5" in failure.message


def test_patches_on_an_unreadable_region_are_left_out(drawn: Path, out: Path, tmp_path: Path) -> None:
    tile(out, [drawn])
    whole, _ = store.read_grid(RunFolder(out).grid("slide_1"))
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(drawn.read_bytes())
    damage_tile(damaged, 14)  # of level 0: columns 512 to 767, rows 512 to 767
    with open_slide(damaged, Config(slides=out, out=out).read) as slide:
        assert slide.sizes[0] == (1500, 1500)
        levels = len(slide.sizes)
    assert tile(out, [damaged], tissue_mpp=0.9) == []  # level 0, so that the damaged tile is read
    grid, mask = store.read_grid(RunFolder(out).grid("damaged"))
    assert levels > 1
    assert mask.unreadable_px0
    lost = shapely.union_all([box(x, y, x + w, y + h) for x, y, w, h in mask.unreadable_px0])
    assert lost.contains(box(512, 512, 768, 768))
    for x, y in grid.xy_px0.tolist():
        assert not lost.intersects(box(x + 0.01, y + 0.01, x + 99.99, y + 99.99))
    assert len(grid) < len(whole)


def test_a_detector_of_another_package_is_used(drawn: Path, out: Path) -> None:
    assert tile(out, [drawn], detector=f"{__name__}:everything") == []
    assert store.read_grid(RunFolder(out).grid("slide_1"))[1].tissue.all()
    with pytest.raises(WsiError, match="one value per pixel"):
        tile(out, [drawn], detector=f"{__name__}:everything", detector_options={"one": True})
    with pytest.raises(WsiError, match="'otsu' has no option 'treshold'"):
        tile(out, [drawn], detector_options={"treshold": 3})


def everything(*, one: bool = False) -> Any:
    return lambda rgb, mpp: np.ones((1, 1) if one else rgb.shape[:2], bool)
