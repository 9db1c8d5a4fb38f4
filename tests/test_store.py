"""Files appear complete or not at all, record how they were made, and read back as they were written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_pipeline import artifacts, store
from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.errors import ArtifactError, StorageError
from wsi_pipeline.types import Explanation, PatchGrid, TissueMask

MADE = Provenance.of("k1", "tile", config={"mpp": 0.5})


def grid(n: int = 5) -> PatchGrid:
    xy = np.stack([np.arange(n) * 224, np.zeros(n)], axis=1).astype(np.int64)
    return PatchGrid(
        "s1", xy, 224, (224.5, 223.9), (112.25, 111.95), 0.5, (0.499, 0.501), (4000, 3000), (10, 20, 300, 400)
    )


def test_a_key_is_the_same_for_the_same_parts_in_any_order() -> None:
    assert artifacts.content_key(a=1, b=[1, 2]) == artifacts.content_key(b=[1, 2], a=1)
    assert artifacts.content_key(a=1) != artifacts.content_key(a=2)


def test_a_fingerprint_depends_on_the_content_and_not_on_the_name(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a.svs").write_bytes(data)
    (tmp_path / "b.svs").write_bytes(data)
    (tmp_path / "c.svs").write_bytes(data[:-1] + b"x")
    first = artifacts.fingerprint(tmp_path / "a.svs")
    assert first == artifacts.fingerprint(tmp_path / "b.svs")
    assert first != artifacts.fingerprint(tmp_path / "c.svs")


def test_a_folder_beside_a_slide_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "case.tif").write_bytes(b"pixels")
    before = artifacts.fingerprint(tmp_path / "case.tif")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "report.html").write_text("of the run")
    assert artifacts.fingerprint(tmp_path / "case.tif") == before


def test_a_text_whose_writing_was_interrupted_is_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "predictions.csv"
    artifacts.write_text_with_provenance(path, "a", Provenance.of("A", "predict"))

    def killed(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(artifacts, "write_provenance", killed)
        artifacts.write_text_with_provenance(path, "b", Provenance.of("B", "predict"))
    assert path.read_text() == "b"
    assert not artifacts.is_current(path, "A")


def test_a_run_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot create the folder"):
        artifacts.write_text(tmp_path / "file" / "run" / "config.yaml", "x")


def test_the_fingerprint_of_a_slide_includes_its_folder_of_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"index")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"1234")
    before = artifacts.fingerprint(tmp_path / "a.mrxs")
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"12345")
    assert artifacts.fingerprint(tmp_path / "a.mrxs") != before


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.txt"
    with pytest.raises(RuntimeError), artifacts.atomic_path(target) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with artifacts.atomic_path(target) as beside:
        beside.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_files_of_a_killed_process_are_removed_and_those_of_a_running_one_are_kept(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\nfrom wsi_pipeline.artifacts import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as beside:\n    beside.write_text('half')\n    os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.txt"], check=False)
    (left,) = tmp_path.glob(".writing-*")
    with artifacts.atomic_path(tmp_path / "y.txt") as beside:
        beside.write_text("whole")
        artifacts.remove_abandoned(tmp_path)
        assert beside.exists()
    assert not left.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["y.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.ome.zarr"
    for content in ("old", "new"):
        with artifacts.atomic_path(target) as beside:
            beside.mkdir()
            (beside / content).write_text(content)
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.ome.zarr"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (file write failed: errno = 28, ...)"),
    ],
)
def test_a_full_disk_is_reported_in_one_line_with_a_remedy(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*x\.h5: No space left on device; free some space"):
        with artifacts.atomic_path(tmp_path / "x.h5"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_slide_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), artifacts.atomic_path(tmp_path / "x.h5"):
        raise OSError(errno.EIO, "Input/output error")


def test_an_unchanged_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    artifacts.write_text(path, "same\n")
    before = path.stat()
    artifacts.write_text(path, "same\n")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_a_grid_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    mask = TissueMask(np.eye(4, dtype=bool), (16.0, 16.5), ((0, 0, 5, 5),))
    store.write_grid(path, grid(), mask, MADE)
    got, got_mask = store.read_grid(path)
    assert vars(got).keys() == vars(grid()).keys()
    for name, value in vars(grid()).items():
        np.testing.assert_array_equal(getattr(got, name), value)
    np.testing.assert_array_equal(got_mask.tissue, mask.tissue)
    assert (got_mask.side_px0, got_mask.unreadable_px0) == (mask.side_px0, mask.unreadable_px0)
    assert artifacts.read_key(path) == "k1"


def test_a_bag_keeps_row_order_and_leaves_unreadable_patches_out(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    readable = np.array([True, True, False, True, True])
    with store.BagWriter(path, grid(), 3, "float16") as writer:
        writer.append(features[:3])
        writer.append(features[3:])
        writer.finish(readable, "lite0", "abc", MADE)
    bag = store.read_bag(path)
    assert bag.features.dtype == np.float16
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.grid.xy_px0, grid().xy_px0[readable])
    np.testing.assert_array_equal(bag.unreadable_px0, grid().xy_px0[~readable])
    assert (bag.encoder, bag.weights_digest) == ("lite0", "abc")


def test_a_bag_has_the_attributes_that_other_programs_expect(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    with store.BagWriter(path, grid(), 3, "float16") as writer:
        writer.append(np.zeros((5, 3)))
        writer.finish(np.ones(5, bool), "lite0", "abc", MADE)
    with h5py.File(path) as file:
        assert file["coords"].dtype == np.int64
        attributes = file["coords"].attrs
        assert attributes["patch_size"] == 224
        assert attributes["patch_size_level0"] == 224
        assert attributes["overlap"] == 112
        assert attributes["level0_width"] == 4000
        assert attributes["name"] == "s1"
        assert json.loads(file.attrs["made_by"])["config"] == {"mpp": 0.5}


def test_an_interrupted_bag_never_appears(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), store.BagWriter(tmp_path / "s1.h5", grid(), 3, "float16") as writer:
        writer.append(np.zeros((2, 3)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_same_bag_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        with store.BagWriter(tmp_path / name, grid(), 3, "float32") as writer:
            writer.append(np.ones((5, 3)))
            writer.finish(np.ones(5, bool), "lite0", "abc", MADE)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_explanations_read_back_per_class(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    scores = np.linspace(-1, 1, 5, dtype=np.float32)
    store.write_explanations(
        path,
        [
            Explanation(grid(), scores * k, "contribution", "abmil", c, "attribution", True)
            for k, c in ((1, "a"), (2, "b"))
        ],
        MADE,
    )
    first, second = store.read_explanations(path)
    assert (first.target, second.target, first.signed, first.unit) == ("a", "b", True, "attribution")
    np.testing.assert_array_equal(second.scores, scores * 2)
    assert first.label == "abmil contribution: a"


def test_the_provenance_of_a_text_is_in_a_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("x\n")
    assert artifacts.read_key(path) is None
    artifacts.write_provenance(path, MADE)
    assert artifacts.is_current(path, "k1")
    path.unlink()
    assert not artifacts.is_current(path, "k1")


def test_a_damaged_file_is_not_current_and_a_foreign_schema_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "a.h5"
    damaged.write_bytes(b"\x89HDF nonsense")
    assert artifacts.read_key(damaged) is None
    foreign = tmp_path / "b.h5"
    with h5py.File(foreign, "w") as file:
        file.attrs.update({"schema": 99, "key": "k1"})
    with pytest.raises(ArtifactError, match="schema 99, this version reads 2"):
        artifacts.read_key(foreign)


@pytest.mark.parametrize("reader", [store.read_bag, store.read_grid, store.read_explanations])
def test_a_missing_or_damaged_input_is_reported_in_one_line(tmp_path: Path, reader: object) -> None:
    assert callable(reader)
    with pytest.raises(ArtifactError, match="does not exist; run the stage that makes it"):
        reader(tmp_path / "none.h5")
    (tmp_path / "bad.h5").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="is damaged"):
        reader(tmp_path / "bad.h5")
    with pytest.raises(ArtifactError, match=r"is a folder; give the \.h5 file of one slide"):
        reader(tmp_path)


@pytest.mark.parametrize("reader", [store.read_bag, store.read_grid, store.read_explanations])
def test_a_file_of_another_schema_program_or_kind_is_refused_in_one_line(tmp_path: Path, reader: object) -> None:
    assert callable(reader)
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:  # as CLAM writes it
        file["features"], file["coords"] = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int64)
    with pytest.raises(ArtifactError, match="was not written by wsi_pipeline; `wsi import-features` takes over"):
        reader(path)
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = 1
    with pytest.raises(ArtifactError, match=r"slide\.h5 was written with schema 1, this version reads 2"):
        reader(path)
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = artifacts.SCHEMA
    with pytest.raises(ArtifactError, match=r"the .* cannot be read from .*slide\.h5: "):
        reader(path)
