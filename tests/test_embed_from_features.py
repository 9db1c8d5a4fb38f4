"""Imported features: each producer's files, written here as the producer writes them, become the right bags."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wsi_pipeline.artifacts import read_made_by
from wsi_pipeline.cli.import_features import import_config, parse_size
from wsi_pipeline.cli.main import app
from wsi_pipeline.config import build_config
from wsi_pipeline.embed.from_features import embed_imported
from wsi_pipeline.engine import Failure
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.interop.feature_files import index, inspect_file, slide_names
from wsi_pipeline.pipeline import run_stages
from wsi_pipeline.project import open_project
from wsi_pipeline.store import read_bag, read_grid
from wsi_pipeline.tile.from_features import covered
from wsi_pipeline.tile.producers import common_step
from wsi_pipeline.types import FeatureBag, PatchGrid

DIM = 5
SCAN = (4096, 3072)  # width, height of every slide here
# Corners in the order of a producer that iterates over contours: not row by row.
XY = np.array([[1536, 512], [512, 512], [1024, 512], [512, 1024], [1024, 0], [512, 0]])
ROWS = [5, 4, 1, 2, 0, 3]  # of XY: top to bottom, then left to right


def features(count: int = len(XY), dtype: Any = np.float32) -> np.ndarray:
    """Row i begins with i, so that it can be identified after sorting."""
    found = np.random.default_rng(0).normal(size=(count, DIM))
    found[:, 0] = np.arange(count)
    return found.astype(dtype)


def write(path: Path, arrays: dict[str, Any], attributes: dict[str, dict[str, Any]] | None = None) -> Path:
    """``attributes``: dataset ("" for the file) -> its attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for name, values in (attributes or {}).items():
            (file[name] if name else file).attrs.update(values)
    return path


# --- the files, as the producers write them --------------------------------------------------------------------------


def clam_features(folder: Path, name: str = "s", **arrays: Any) -> Path:
    return write(folder / "h5_files" / f"{name}.h5", {"features": features(), "coords": XY.astype(np.int32), **arrays})


def clam_coordinates(folder: Path, name: str = "s", xy: np.ndarray = XY, **changed: Any) -> Path:
    stated = {
        "patch_size": 128,
        "patch_level": 1,
        "downsample": (4.00039, 4.0),
        "downsampled_level_dim": (1024, 768),
        "level_dim": (SCAN[0] / 4.00039, 768),
        "name": name,
        "save_path": "x",
    }
    return write(folder / "patches" / f"{name}.h5", {"coords": xy.astype(np.int64)}, {"coords": {**stated, **changed}})


def trident(folder: Path, name: str = "s", encoder: str | None = "uni_v1", **changed: Any) -> Path:
    stated = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": name,
        "savetodir": "x",
        "level0_width": SCAN[0],
        "level0_height": SCAN[1],
    }
    of_features = {"name": name, "savetodir": "x"} | ({"encoder": encoder} if encoder else {})
    return write(
        folder / f"features_{encoder or 'uni_v1'}" / f"{name}.h5",
        {"features": features(), "coords": XY.astype(np.int64)},
        {"coords": {**stated, **changed}, "features": of_features},
    )


def stamp(folder: Path, mpp: float, name: str = "s", **changed: Any) -> Path:
    """STAMP 2.1: corners in µm, 128 µm apart on a slide of 0.25 µm/px."""
    stated = {"stamp_version": "2.1.0", "extractor": "virchow2", "unit": "um", "feat_type": "tile", "code_hash": "0"}
    sizes = {"tile_size_um": 512 * mpp, "tile_size_px": 224}
    arrays = {"feats": features(dtype=np.float16), "coords": (XY * mpp).astype(np.float32)}
    attributes = {key: value for key, value in (stated | sizes | changed).items() if value is not None}
    return write(folder / "virchow2-0" / f"{name}.h5", arrays, {"": attributes})


def atlaspatch(folder: Path, *encoders: str, name: str = "s") -> Path:
    stated = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    stated |= {"overlap": 64, "level0_width": SCAN[0], "level0_height": SCAN[1], "num_patches": len(XY)}
    coords = np.column_stack([XY, np.full((len(XY), 2), 256), np.ones(len(XY))]).astype(np.int32)
    arrays: dict[str, Any] = {"coords": coords, "passports": np.array([b"p"] * len(XY))}
    arrays |= {f"features/{encoder}": features() + i for i, encoder in enumerate(encoders)}
    return write(folder / "patches" / f"{name}.h5", arrays, {"": stated})


# --- the run ---------------------------------------------------------------------------------------------------------


def make(folder: Path, names: tuple[str, ...] = ("s",), mpp: float | None = 0.25, **options: Any) -> list[Failure]:
    """Tile and embed the files in ``folder``/theirs, as ``wsi tile`` and ``wsi embed`` do."""
    manifest = folder / "slides.csv"
    manifest.write_text("slide_id,path,mpp\n" + "".join(f"{n},{n}.png,{mpp or ''}\n" for n in names))
    overrides = options.pop("overrides", [])
    data = {"slides": "slides.csv", "out": "run", "embed": {"import": "theirs", "import_options": options}}
    return run_stages(open_project(build_config(data, overrides, base=folder, source="test")), ("tile", "embed"))


def bag_of(folder: Path, name: str = "s", mpp: float | None = 0.25, **options: Any) -> FeatureBag:
    assert make(folder, (name,), mpp, **options) == []
    return read_bag(folder / "run" / "embed" / f"{name}.h5")


def why_not(folder: Path, mpp: float | None = 0.25, **options: Any) -> str:
    (failure,) = make(folder, mpp=mpp, **options)
    assert not (folder / "run" / "embed" / "s.h5").exists()
    return failure.message


def check_rows(bag: FeatureBag, dtype: type = np.float16) -> None:
    """The patches are sorted row by row, and each has kept its own features."""
    assert bag.grid.xy_px0.tolist() == XY[ROWS].tolist()
    assert bag.features[:, 0].tolist() == ROWS
    np.testing.assert_array_equal(bag.features, features().astype(dtype)[ROWS])


def test_a_batch_of_one_counts_as_its_bag(tmp_path: Path) -> None:
    clam_features(tmp_path / "theirs", features=features()[None], coords=XY[None])
    clam_coordinates(tmp_path / "theirs")
    check_rows(bag_of(tmp_path, encoder="resnet50"))
    assert slide_names(tmp_path / "theirs") == ["s"]


def test_clams_footprint_is_patch_size_times_the_integer_downsample(tmp_path: Path) -> None:
    clam_features(tmp_path / "theirs")
    clam_coordinates(tmp_path / "theirs")
    bag = bag_of(tmp_path, encoder="resnet50")
    check_rows(bag)
    assert bag.grid.side_px0 == (512.0, 512.0)  # 128 x int(4.00039)
    assert bag.grid.stride_px0 == (512.0, 512.0)  # not written anywhere: measured
    assert (bag.grid.side_px, bag.grid.mpp, bag.grid.target_mpp) == (128, (0.25, 0.25), 1.0)
    assert bag.grid.slide_size_px0 == SCAN  # level_dim x downsample
    assert (bag.encoder, bag.weights_digest) == ("resnet50", "imported:clam")
    made_by = read_made_by(tmp_path / "run" / "tile" / "s.h5")
    assert made_by["notes"][0] == "rows sorted by y, then by x"


def test_clams_coordinates_may_be_in_another_folder_or_be_given_as_options(tmp_path: Path) -> None:
    clam_features(tmp_path / "theirs")
    clam_coordinates(tmp_path / "results")
    in_another_folder = bag_of(tmp_path, encoder="resnet50", coords="../results")
    given = bag_of(tmp_path, encoder="resnet50", patch_size_level0=512, patch_size=128, slide_size=[4096, 3072])
    for bag in (in_another_folder, given):
        check_rows(bag)
        assert bag.grid.side_px0 == (512.0, 512.0)
        assert (bag.grid.target_mpp, bag.grid.slide_size_px0) == (1.0, SCAN)


def test_trident_states_everything_but_the_mpp(tmp_path: Path) -> None:
    trident(tmp_path / "theirs" / "20x_256px_0px_overlap", overlap=64)
    bag = bag_of(tmp_path)
    check_rows(bag)
    assert bag.grid.side_px0 == (512.0, 512.0)
    assert bag.grid.stride_px0 == (384.0, 384.0)  # 512 - 64 px of the patch, twice as many at level 0
    assert (bag.grid.side_px, bag.grid.target_mpp, bag.grid.slide_size_px0) == (256, 0.5, SCAN)
    assert (bag.encoder, bag.weights_digest) == ("uni_v1", "imported:trident")


def test_tridents_text_none_counts_as_absent(tmp_path: Path) -> None:
    path = trident(tmp_path / "theirs", overlap="None", level0_width="None", level0_height="None")
    assert {"overlap", "level0_width"}.isdisjoint(inspect_file(path).facts)
    assert "--slide-size patches" in why_not(tmp_path)
    bag = bag_of(tmp_path, slide_size="patches")
    assert bag.grid.slide_size_px0 == (2048, 1536)  # the last patch begins at (1536, …) and (…, 1024)
    assert bag.grid.stride_px0 == (512.0, 512.0)


def test_an_older_trident_states_the_encoder_as_folder_name_and_the_footprint_as_magnifications(
    tmp_path: Path,
) -> None:
    trident(tmp_path / "theirs", encoder=None, patch_size_level0="None")
    bag = bag_of(tmp_path)
    assert bag.encoder == "uni_v1"
    assert bag.grid.side_px0 == (512.0, 512.0)  # 256 x 40 / 20


@pytest.mark.parametrize("shape", [(0, DIM), (0,)])
def test_only_the_slide_in_which_trident_found_no_tissue_fails(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = trident(tmp_path / "theirs")
    with h5py.File(path, "r+") as file:
        for name in ("features", "coords"):
            del file[name]
            file[name] = np.zeros(shape if name == "features" else (0,))
        file["coords"].attrs["patch_size_level0"] = 512
    trident(tmp_path / "theirs", "t")
    failures = make(tmp_path, ("s", "t"))
    assert [(f.slide_id, f.stage, f.error) for f in failures] == [("s", "tile", "EmptySlideError")]
    check_rows(read_bag(tmp_path / "run" / "embed" / "t.h5"))


@pytest.mark.parametrize("mpp", [0.25, 0.2431])
def test_stamps_coordinates_are_micrometres_and_its_resolution_is_the_same_on_every_scanner(
    mpp: float, tmp_path: Path
) -> None:
    xy_um = np.array([[768.0, 256.0], [256.0, 256.0], [512.0, 0.0]], np.float32)
    path = stamp(tmp_path / "theirs", 0.25, tile_size_um=256.0)
    with h5py.File(path, "r+") as file:
        for name, array in (("coords", xy_um), ("feats", features(3, np.float16))):
            del file[name]
            file[name] = array
    bag = bag_of(tmp_path, mpp=mpp, slide_size=list(SCAN))
    expected = [[round(x / mpp), round(y / mpp)] for x, y in ((512, 0), (256, 256), (768, 256))]
    assert bag.grid.xy_px0.tolist() == expected
    assert bag.features[:, 0].tolist() == [2, 1, 0]
    assert bag.grid.side_px0 == (256 / mpp, 256 / mpp)
    assert bag.grid.stride_px0 == bag.grid.side_px0
    assert bag.grid.target_mpp == pytest.approx(256 / 224, rel=1e-12)
    assert (bag.encoder, bag.weights_digest, bag.grid.side_px) == ("virchow2", "imported:stamp", 224)


def test_stamp_2_0_does_not_state_the_pixels_of_a_tile(tmp_path: Path) -> None:
    stamp(tmp_path / "theirs", 0.25, tile_size=128.0, tile_size_um=None, tile_size_px=None, stamp_version=None)
    assert "give it with --patch-size PIXELS" in why_not(tmp_path, slide_size="patches")
    bag = bag_of(tmp_path, slide_size="patches", patch_size=224)
    check_rows(bag)
    assert bag.grid.side_px0 == (512.0, 512.0)
    assert bag.grid.target_mpp == pytest.approx(128 / 224)


def write_stamp1(folder: Path, tiles: np.ndarray, augmented: bool = False) -> None:
    arrays = {"feats": features(dtype=np.float16), "coords": tiles, "augmented": np.repeat(augmented, len(tiles))}
    write(folder / "theirs" / "s.h5", arrays, {"": {"extractor": "STAMP-extract-001_xiyuewang-ctranspath"}})


def test_stamp_1s_coordinates_are_pixels_of_256_by_224_micrometres(tmp_path: Path) -> None:
    write_stamp1(tmp_path, XY // 512 * 224)
    bag = bag_of(tmp_path, mpp=0.5, slide_size="patches")
    check_rows(bag)  # one tile is 256 µm, 512 pixels of 0.5 µm
    assert bag.grid.side_px0 == (512.0, 512.0)
    assert (bag.grid.side_px, bag.encoder) == (224, "STAMP-extract-001_xiyuewang-ctranspath")
    assert bag.grid.target_mpp == pytest.approx(256 / 224)


def test_coords_without_a_unit_are_refused_unless_they_are_stamp_1s(tmp_path: Path) -> None:
    write_stamp1(tmp_path, XY)
    assert "they are 512 apart, not 224 as in STAMP 1" in why_not(tmp_path, slide_size="patches")
    write_stamp1(tmp_path, XY // 512 * 224, augmented=True)
    assert "augmented" in why_not(tmp_path, slide_size="patches")


def test_atlaspatch_keeps_several_encoders_in_one_file(tmp_path: Path) -> None:
    atlaspatch(tmp_path / "theirs", "resnet50", "uni_v2")
    with pytest.raises(ConfigError, match="has features of resnet50, uni_v2; choose one with --encoder NAME"):
        make_or_raise(tmp_path)
    bag = bag_of(tmp_path, encoder="uni_v2")
    assert bag.grid.xy_px0.tolist() == XY[ROWS].tolist()
    assert bag.features[:, 0].tolist() == [row + 1 for row in ROWS]  # of the second dataset
    assert bag.grid.side_px0 == (512.0, 512.0)
    assert bag.grid.stride_px0 == (384.0, 384.0)
    assert (bag.encoder, bag.weights_digest, bag.grid.target_mpp) == ("uni_v2", "imported:atlaspatch", 0.5)
    assert bag.grid.slide_size_px0 == SCAN


def make_or_raise(folder: Path, **options: Any) -> None:
    """An error that stops the run is raised as ``WsiError``; converts it back to the stage's ``ConfigError``."""
    from wsi_pipeline.errors import WsiError

    try:
        make(folder, **options)
    except WsiError as error:
        raise ConfigError(str(error)) from error


# --- missing properties -----------------------------------------------------------------------------------------------


def test_clams_features_alone_need_the_encoder_and_the_footprint(tmp_path: Path) -> None:
    clam_features(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="does not state which encoder made its features; give --encoder NAME"):
        make_or_raise(tmp_path)
    assert "--coords DIR, or the side in level-0 pixels with --patch-size-level0 P" in why_not(tmp_path, encoder="r")
    assert "--patch-size PIXELS" in why_not(tmp_path, encoder="r", patch_size_level0=512)


def test_a_missing_mpp_is_requested(tmp_path: Path) -> None:
    trident(tmp_path / "theirs")
    message = why_not(tmp_path, mpp=None)
    assert "s.png" in message  # why the slide does not state it
    assert "manifest's mpp column, or with --mpp (read.mpp)" in message
    bag = bag_of(tmp_path, mpp=None, overrides=["read.mpp=[0.25, 0.5]"])
    assert (bag.grid.mpp, bag.grid.target_mpp) == ((0.25, 0.5), 0.75)  # 512 x (0.25 + 0.5) / 2 / 256


def test_a_slide_that_opens_gives_size_and_mpp_and_must_agree_with_the_file(tmp_path: Path) -> None:
    stamp(tmp_path / "theirs", 0.25)
    Image.new("RGB", (2050, 1540)).save(tmp_path / "s.png")
    assert bag_of(tmp_path).grid.slide_size_px0 == (2050, 1540)
    trident(tmp_path / "theirs", "t")
    Image.new("RGB", (2050, 1540)).save(tmp_path / "t.png")
    (failure,) = make(tmp_path, ("s", "t"))
    assert "is of a slide of 4096 x 3072 pixels, but the slide has 2050 x 1540" in failure.message


def test_patches_outside_the_slide_are_refused(tmp_path: Path) -> None:
    stamp(tmp_path / "theirs", 0.25)
    message = why_not(tmp_path, mpp=0.125, slide_size=[2050, 1540])
    assert "the patch at (3072, 1024) lies outside the slide of 2050 x 1540 pixels" in message


def test_file_and_options_must_agree(tmp_path: Path) -> None:
    trident(tmp_path / "theirs")
    assert "has patch_size_level0 512, but --patch-size-level0 256" in why_not(tmp_path, patch_size_level0=256)
    with pytest.raises(ConfigError, match="its features are of uni_v1, not of gigapath"):
        make_or_raise(tmp_path, encoder="gigapath")


def test_clams_two_files_must_be_of_one_tiling(tmp_path: Path) -> None:
    clam_features(tmp_path / "theirs")
    clam_coordinates(tmp_path / "theirs", xy=XY + 1)
    assert "have different coords" in why_not(tmp_path, encoder="r")


@pytest.mark.parametrize(("value", "words"), [(np.nan, "contain NaN or infinity"), (1e6, "--set embed.dtype=float32")])
def test_features_that_the_bags_type_cannot_represent_are_refused(value: float, words: str, tmp_path: Path) -> None:
    path = trident(tmp_path / "theirs")
    with h5py.File(path, "r+") as file:
        file["features"][3, 2] = value
    (failure,) = make(tmp_path)
    assert (failure.stage, failure.error) == ("embed", "SlideError")
    assert "the imported features of the patch at (512, 1024)" in failure.message
    assert words in failure.message


def test_float32_preserves_every_bit(tmp_path: Path) -> None:
    trident(tmp_path / "theirs")
    check_rows(bag_of(tmp_path, overrides=["embed.dtype=float32"]), np.float32)


def test_the_file_is_found_in_any_subfolder_but_must_be_unique(tmp_path: Path) -> None:
    trident(tmp_path / "theirs")
    trident(tmp_path / "theirs", encoder="conch_v15")
    write(tmp_path / "theirs" / "patches" / "s_patches.h5", {"coords": XY})
    write(tmp_path / "theirs" / "slide_features_titan" / "s.h5", {"features": np.zeros(DIM)})
    with pytest.raises(ConfigError, match=r"features_conch_v15/s.h5 and in .*features_uni_v1/s.h5"):
        make(tmp_path)
    assert bag_of(tmp_path, encoder="conch_v15").encoder == "conch_v15"


def test_for_a_slide_without_a_file_the_error_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "pt_files").mkdir(parents=True)
    assert "no s.h5 in" in why_not(tmp_path)
    (tmp_path / "theirs" / "pt_files" / "s.pt").write_bytes(b"")
    assert "only its .pt file, which has no coordinates" in why_not(tmp_path)
    (tmp_path / "theirs" / "s.h5").write_bytes(b"no HDF5")
    assert "cannot be read as HDF5" in why_not(tmp_path)
    stamp(tmp_path / "theirs", 0.25, feat_type="slide")
    (tmp_path / "theirs" / "s.h5").unlink()
    assert "one vector for the whole slide" in why_not(tmp_path)


def test_a_bag_of_this_package_is_not_imported(tmp_path: Path) -> None:
    trident(tmp_path / "theirs")
    bag_of(tmp_path)
    (tmp_path / "run" / "embed" / "s.h5").rename(tmp_path / "theirs" / "features_uni_v1" / "s.h5")
    assert "is a bag of wsi_pipeline" in why_not(tmp_path)


@pytest.mark.parametrize(
    ("options", "overrides", "words"),
    [
        ({"colour": 1}, [], "embed.import_options.colour"),
        ({"patch_size": 0}, [], "embed.import_options.patch_size = 0"),
        ({}, ["embed.import=nowhere"], "is not a folder"),
        ({}, ["tile.roi=x.geojson"], "leave it out with embed.import"),
    ],
)
def test_options_that_cannot_be_used_stop_the_run(
    options: dict[str, Any], overrides: list[str], words: str, tmp_path: Path
) -> None:
    trident(tmp_path / "theirs")
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, overrides=overrides, **options)
    assert words in str(caught.value)


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_the_stride_is_the_most_common_distance_between_neighbours() -> None:
    y = np.zeros(6)
    assert common_step(np.array([0.0, 10, 20, 30, 70, 80]), y) == 10.0  # 10, 10, 10, 40, 10
    assert common_step(np.array([0.0, 10, 30, 60, 100, 150]), y) is None  # all different
    assert common_step(np.array([0.0, 10]), np.array([0.0, 1.0])) is None  # no row has two


def test_tissue_is_the_area_that_the_patches_cover() -> None:
    rng = np.random.default_rng(3)
    xy = np.unique(rng.integers(-3, 90, (20, 2)), axis=0)[:, ::-1].copy()
    size, side = (97, 83), (13.5, 11.0)
    grid = PatchGrid("s", xy[np.lexsort(xy.T)], 8, side, side, 1.0, (1.0, 1.0), size, (0, 0, *size))
    mask = covered(grid)
    assert mask.side_px0 == (13.5 / 4, 11 / 4)
    assert mask.tissue.shape == (31, 29)  # 83 / 2.75 and 97 / 3.375, rounded up
    for row in range(31):
        for column in range(29):
            x, y = (column + 0.5) * 13.5 / 4, (row + 0.5) * 11 / 4
            inside = any(a <= x < a + side[0] and b <= y < b + side[1] for a, b in grid.xy_px0.tolist())
            assert mask.tissue[row, column] == inside


def test_a_large_slide_has_a_coarser_mask() -> None:
    grid = PatchGrid("s", np.array([[0, 0]]), 8, (64.0, 64.0), (64.0, 64.0), 1.0, (1.0, 1.0), (409_600, 100), (0,) * 4)
    assert covered(grid).side_px0[0] == 100.0
    assert covered(grid).tissue.shape[1] == 4096


def test_slides_of_slightly_different_mpp_can_be_given_one_target_mpp(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        trident(tmp_path / "theirs", name)
    with caplog.at_level(logging.WARNING, "wsi_pipeline"):
        make(tmp_path, ("a", "b"))
        assert caplog.messages == []
        mixed(tmp_path, 0.2431)
        assert "0.4862 to 0.5 µm/px" in caplog.messages[0]
        assert "--target-mpp 0.49" in caplog.messages[0]
        caplog.clear()
        assert mixed(tmp_path, 0.2431, target_mpp=0.5) == []
        assert caplog.messages == []
    grids = [read_grid(tmp_path / "run" / "tile" / f"{name}.h5")[0] for name in ("a", "b")]
    assert [grid.target_mpp for grid in grids] == [0.5, 0.5]
    assert [grid.mpp for grid in grids] == [(0.25, 0.25), (0.2431, 0.2431)]  # maps stay exact
    (failure,) = mixed(tmp_path, 0.5, target_mpp=0.5)
    assert "patches have 1 µm/px, too far from --target-mpp 0.5" in failure.message


def mixed(folder: Path, mpp_b: float, **options: Any) -> list[Failure]:
    (folder / "slides.csv").write_text(f"slide_id,path,mpp\na,a.png,0.25\nb,b.png,{mpp_b}\n")
    data = {"slides": "slides.csv", "out": "run", "embed": {"import": "theirs", "import_options": options}}
    return run_stages(open_project(build_config(data, [], base=folder, source="test")), ("tile", "embed"))


# --- end to end -------------------------------------------------------------------------------------------------------


def untouched(folder: Path) -> dict[str, tuple[int, int]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def wsi(*arguments: Path | str) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_imported_features_run_through_all_stages_without_a_slide(tmp_path: Path) -> None:
    for i in range(12):
        path = trident(tmp_path / "theirs", f"s{i:02d}")
        with h5py.File(path, "r+") as file:
            file["features"][: i % 2 * 3, 1] = 9.0  # the evidence of the positive slides
    run = tmp_path / "run"
    wsi("import-features", tmp_path / "theirs", "--out", run, "--mpp", "0.25")
    assert [line["slide_id"] for line in lines(run / "slides.csv")] == [f"s{i:02d}" for i in range(12)]
    before = untouched(run)
    wsi("import-features", tmp_path / "theirs", "--out", run, "--mpp", "0.25")
    assert untouched(run) == before

    text = (run / "slides.csv").read_text().splitlines()
    labels = ["label", *("ab"[i % 2] for i in range(12))]
    (run / "slides.csv").write_text("".join(f"{line},{label}\n" for line, label in zip(text, labels, strict=True)))
    settings = ["train.folds=2", "train.epochs=3", "train.device=cpu", "evaluate.bootstrap=20"]
    settings += ["explain.methods=[attention]", "explain.device=cpu", "predict.device=cpu"]
    given = [part for setting in settings for part in ("--set", setting)]
    wsi("run", run / "config.yaml", *given)
    assert len(lines(run / "predict" / "predictions.csv")) == 12
    assert lines(run / "failures.csv") == []
    assert (run / "heatmap" / "s03.ome.zarr").is_dir()
    panel = (run / "view" / "panels" / "s03.html").read_text()
    assert "no picture of the slide" in panel
    assert "4,096 × 3,072 px" in panel
    assert panel.count("<image class") == 1  # only the map
    before = untouched(run)
    wsi("run", run / "config.yaml", *given)
    assert untouched(run) == before


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_changed_file_makes_one_new_bag(tmp_path: Path) -> None:
    paths = [trident(tmp_path / "theirs", name) for name in ("a", "b")]
    make(tmp_path, ("a", "b"))
    before = untouched(tmp_path / "run")
    with h5py.File(paths[1], "r+") as file:
        file["features"][0, 0] = 77.0
    assert make(tmp_path, ("a", "b")) == []
    after = untouched(tmp_path / "run")
    changed = {Path(name).relative_to(tmp_path / "run").as_posix() for name in after if after[name] != before[name]}
    assert changed == {"tile/b.h5", "embed/b.h5"}
    assert 77.0 in read_bag(tmp_path / "run" / "embed" / "b.h5").features[:, 0]


def test_available_slides_are_listed_in_the_manifest(tmp_path: Path) -> None:
    trident(tmp_path / "theirs")
    trident(tmp_path / "theirs", "other.id")
    (tmp_path / "scans").mkdir()
    Image.new("RGB", SCAN).save(tmp_path / "scans" / "s.png")
    run = tmp_path / "run"
    wsi("import-features", tmp_path / "theirs", "--out", run, "--mpp", "0.25", "--slides", tmp_path / "scans")
    paths = {line["slide_id"]: Path(line["path"]) for line in lines(run / "slides.csv")}
    assert paths == {"s": tmp_path / "scans" / "s.png", "other.id": run / "slides" / "other.id"}
    assert not paths["other.id"].exists()
    assert set(index(run / "embed")) == {"s", "other.id"}


def test_slides_may_be_named_in_a_second_call_and_labels_stay(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("a", "b"):
        trident(tmp_path / "theirs", name)
    wsi("import-features", tmp_path / "theirs", "--out", run, "--mpp", "0.25")
    manifest = run / "slides.csv"
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{rows[0]},label", f"{rows[1]},tumour", f"{rows[2]},normal"]) + "\n")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.svs").write_bytes(b"not opened here")
    import_config(tmp_path / "theirs", run, [], slides=str(tmp_path / "scans"), mpp=0.25, options={})
    assert [(line["path"], line["label"]) for line in lines(manifest)] == [
        (str(tmp_path / "scans" / "a.svs"), "tumour"),
        (str(run / "slides" / "b"), "normal"),
    ]


def test_a_slide_size_is_parsed_as_width_by_height() -> None:
    assert parse_size("4096x3072") == [4096, 3072]
    assert parse_size("patches") == "patches"
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        parse_size("4096")


def test_a_job_can_be_sent_to_another_process() -> None:
    assert embed_imported.__module__ == "wsi_pipeline.embed.from_features"
