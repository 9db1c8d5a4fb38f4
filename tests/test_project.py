"""The manifest: only ``path`` is required, and the message of a mistake names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_pipeline.config import build_config
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.project import open_project, read_manifest, slides_from_paths, write_manifest


def manifest(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "slides.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_path_is_required(tmp_path: Path) -> None:
    (row,) = read_manifest(manifest(tmp_path, "path\nslides/a.svs\n"))
    assert (row.slide_id, row.path, row.patient_id) == ("a", tmp_path / "slides" / "a.svs", "a")
    assert (row.label, row.split, row.mpp, row.annotation) == (None, None, None, None)


def test_every_column_is_read(tmp_path: Path) -> None:
    text = "slide_id,path,patient_id,label,split,mpp,annotation\ns1,/x/a.svs,p1,tumor,test,0.25,a.xml\n"
    (row,) = read_manifest(manifest(tmp_path, text))
    assert (row.patient_id, row.label, row.split, row.mpp) == ("p1", "tumor", "test", 0.25)
    assert row.annotation == tmp_path / "a.xml"


def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_bytes("\ufeffpath, label\r\na.svs,normal\r\n,\r\n".encode())
    (row,) = read_manifest(path)
    assert row.label == "normal"


def test_unknown_columns_are_ignored(tmp_path: Path) -> None:
    (row,) = read_manifest(manifest(tmp_path, "path,age,stain\na.svs,61,HE\n"))
    assert row.slide_id == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\na,b\n", "no 'path' column"),
        ("", "no 'path' column"),
        ("path,lable\na.svs,x\n", "a column 'lable'; did you mean 'label'"),
        ("path\n", "lists no slide"),
        ("path,mpp\na.svs,fine\n", "line 2: mpp 'fine'"),
        ("path,mpp\na.svs,-1\n", "line 2: mpp '-1'"),
        ("path,split\na.svs,training\n", "line 2: split 'training'"),
        ("slide_id,path\nx/y,a.svs\n", "line 2: slide_id 'x/y'"),
        ("slide_id,path\na,1.svs\nb,2.svs\na,3.svs\n", "'a' appears twice"),
        ("slide_id,path\na,\n", "line 2: path is empty"),
        ("path,path\na.svs,b.svs\n", "two columns 'path'"),
        ("path,label\na.svs,tumor,extra\n", "more cells than the header"),
        ('slide_id,path\na,"a.svs\nb,b.svs\n', "not a CSV"),
        ("path\n~nosuchuser/a.svs\n", "is not a path"),
        ("path\n" + "x" * 250 + ".svs\n", "too long for a file name"),
        ("path,mpp\na.svs,1e-9\n", "line 2: mpp '1e-9'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_manifest(manifest(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'a' appears twice"):
        read_manifest(manifest(tmp_path, "path\none/a.svs\ntwo/a.svs\n"))


def test_a_written_manifest_reads_back(tmp_path: Path) -> None:
    rows = slides_from_paths([tmp_path / "b, 2.svs", tmp_path / "a.ome.tif"])
    write_manifest(tmp_path / "m.csv", rows)
    assert [(r.slide_id, r.path) for r in read_manifest(tmp_path / "m.csv")] == [(r.slide_id, r.path) for r in rows]


def test_only_selects_slides_and_refuses_unknown_ones(tmp_path: Path) -> None:
    manifest(tmp_path, "path\na.svs\nb.svs\n")
    config = build_config({"slides": "slides.csv", "out": "run"}, [], base=tmp_path, source="test")
    project = open_project(config, ["b"])
    assert [s.slide_id for s in project.slides] == ["b"]
    assert [s.slide_id for s in project.cohort] == ["a", "b"]
    assert (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ConfigError, match="--only c: no such slide_id"):
        open_project(config, ["c"])
