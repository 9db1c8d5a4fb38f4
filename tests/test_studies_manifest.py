"""Manifests of public cohorts: the meaning of names, slides that are left out and why, and refused downloads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsi_pipeline.cli.main import app
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.project import read_manifest
from wsi_pipeline.studies.camelyon16 import KNOWN_ISSUES, camelyon16_rows, canonical, read_camelyon16, reference_labels
from wsi_pipeline.studies.manifest import manifest_text, select_slides
from wsi_pipeline.studies.tcga import outcomes, tcga_rows
from wsi_pipeline.types import SlideRow

# --- CAMELYON16 -----------------------------------------------------------------------------------------------


def paths(*names: str) -> list[Path]:
    return [Path("c16") / name for name in names]


@pytest.mark.parametrize(
    ("name", "slide"),
    [
        ("normal_001", "normal_001"),
        ("Normal_86", "normal_086"),
        ("Test_049", "test_049"),
        ("tumor_111", "tumor_111"),
        ("tumor_001_mask", None),
        ("reference", None),
    ],
)
def test_a_slide_is_identified_by_its_name(name: str, slide: str | None) -> None:
    assert canonical(name) == slide


def test_the_folders_of_the_challenge_are_read() -> None:
    files = paths(
        "training/normal/normal_001.tif",
        "training/tumor/tumor_001.tif",
        "training/lesion_annotations/tumor_001.xml",
        "training/masks/tumor_001_mask.tif",
        "testing/images/test_001.tif",
        "testing/images/test_002.tif",
        "testing/lesion_annotations/test_001.xml",
    )
    reference = {"test_001": "tumor", "test_002": "normal"}
    assert manifest_text(camelyon16_rows(files, reference)).splitlines() == [
        "slide_id,path,patient_id,label,split,annotation",
        "normal_001,c16/training/normal/normal_001.tif,normal_001,normal,train,",
        "test_001,c16/testing/images/test_001.tif,test_001,tumor,test,c16/testing/lesion_annotations/test_001.xml",
        "test_002,c16/testing/images/test_002.tif,test_002,normal,test,",
        "tumor_001,c16/training/tumor/tumor_001.tif,tumor_001,tumor,train,c16/training/lesion_annotations/tumor_001.xml",
    ]


def test_the_folders_on_aws_give_the_same() -> None:
    files = paths("images/test_001.tif", "images/normal_001.tif", "annotations/test_001.xml")
    rows = camelyon16_rows(files, {"test_001": "tumor"})
    assert [(r.slide_id, r.label, r.split) for r in rows] == [
        ("normal_001", "normal", "train"),
        ("test_001", "tumor", "test"),
    ]


def test_slides_with_known_issues_are_left_out_or_lose_their_incomplete_annotation() -> None:
    """normal_86 was mislabelled, test_049 is a duplicate; test_114 and 20 training slides are annotated in part."""
    files = paths("normal_086.tif", "test_049.tif", "test_114.tif", "test_114.xml", "tumor_010.tif", "tumor_010.xml")
    rows = camelyon16_rows(files, {"test_049": "tumor", "test_114": "tumor"})
    assert [(r.slide_id, r.label, r.annotation) for r in rows] == [
        ("test_114", "tumor", None),
        ("tumor_010", "tumor", None),
    ]


def test_the_table_of_known_issues_is_complete() -> None:
    assert [entry.slide for entry in KNOWN_ISSUES if entry.action == "leave out"] == ["normal_086", "test_049"]
    partly = [entry.slide for entry in KNOWN_ISSUES if entry.action == "no annotation"]
    assert len(partly) == len(set(partly)) == 21
    assert all(canonical(entry.slide) == entry.slide and entry.reason for entry in KNOWN_ISSUES)


@pytest.mark.parametrize(
    ("files", "reference", "message"),
    [
        (["tumor_001.tif"], {}, "there is no tumor_001.xml"),
        (["test_001.tif"], {}, "does not list test_001"),
        (["normal_001.tif"], {"test_001": "normal"}, "there is no test_001.tif"),
        (["a/normal_001.tif", "b/normal_001.tif"], {}, "normal_001 appears twice"),
    ],
)
def test_an_incomplete_download_is_refused(files: list[str], reference: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        camelyon16_rows(paths(*files), reference)


def test_the_published_reference_csv_is_read() -> None:
    lines = [["test_001", "Tumor", "IDC", "Macro"], ["Test_2.tif", "Normal", "None", "None"], []]
    assert reference_labels(lines) == {"test_001": "tumor", "test_002": "normal"}
    with pytest.raises(ConfigError, match="'Tumour'; it must be Normal or Tumor"):
        reference_labels([["test_001", "Tumour"]])


def test_a_folder_without_the_challenge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no slide of CAMELYON16"):
        read_camelyon16(tmp_path)
    (tmp_path / "normal_001.tif").touch()
    with pytest.raises(ConfigError, match=r"no reference\.csv"):
        read_camelyon16(tmp_path)


def test_the_command_writes_a_valid_manifest(tmp_path: Path) -> None:
    for name in ("normal_001.tif", "normal_002.tif", "test_001.tif", "test_001.xml"):
        (tmp_path / name).touch()
    (tmp_path / "reference.csv").write_text("test_001,Tumor,IDC,Micro\n")
    out = tmp_path / "out" / "slides.csv"
    command = ["manifest", "camelyon16", str(tmp_path), "--out", str(out), "--leave-out", "normal_002", "--count", "2"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "test tumor 1, train normal 1; 1 with an annotation" in done.output
    normal, test = read_manifest(out)
    assert (normal.slide_id, normal.split, normal.path) == ("normal_001", "train", tmp_path / "normal_001.tif")
    assert (test.label, test.annotation) == ("tumor", tmp_path / "test_001.xml")


# --- TCGA -----------------------------------------------------------------------------------------------------

LUNG = "TCGA-05-4244-01Z-00-DX1.d4ff32cd-38cf-40ea-8213-45c2b100ac01.svs"
SQUAMOUS = "TCGA-18-3406-01Z-00-DX1.a1b2.svs"


def line(name: str, project: str) -> dict[str, str]:
    return {"File ID": "x", "File Name": name, "Project ID": project, "Case ID": name[:12]}


def test_a_barcode_gives_patient_and_site() -> None:
    files = {LUNG: Path("id1") / LUNG, SQUAMOUS: Path("id2") / SQUAMOUS}
    rows = tcga_rows([line(SQUAMOUS, "TCGA-LUSC"), line(LUNG, "TCGA-LUAD")], files)
    assert manifest_text(rows).splitlines() == [
        "slide_id,path,patient_id,label,site",
        f"{LUNG[:-4]},id1/{LUNG},TCGA-05-4244,LUAD,05",
        f"{SQUAMOUS[:-4]},id2/{SQUAMOUS},TCGA-18-3406,LUSC,18",
    ]


def test_only_diagnostic_slides_of_the_given_projects_are_listed() -> None:
    frozen = "TCGA-05-4244-01A-01-TS1.1234.svs"
    second = "TCGA-05-4244-01Z-00-DX2.99.svs"
    sheet = [line(frozen, "TCGA-LUAD"), line(LUNG, "TCGA-LUAD"), line(SQUAMOUS, "TCGA-LUSC"), line(second, "TCGA-LUAD")]
    rows = tcga_rows(sheet, {LUNG: Path(LUNG), second: Path(second)}, ["TCGA-LUAD"])
    assert [(r.slide_id, r.patient_id) for r in rows] == [
        (LUNG[:-4], "TCGA-05-4244"),
        ("TCGA-05-4244-01Z-00-DX2.99", "TCGA-05-4244"),
    ]


def test_a_sheet_that_does_not_fit_the_download_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"DX1\.d4ff32cd.* complete the download"):
        tcga_rows([line(LUNG, "TCGA-LUAD")], {})
    with pytest.raises(ConfigError, match=r"no diagnostic slide .* of TCGA-KICH"):
        tcga_rows([line(LUNG, "TCGA-LUAD")], {LUNG: Path(LUNG)}, ["TCGA-KICH", "TCGA-LUAD"])
    two = [line(LUNG, "TCGA-LUAD"), line(LUNG, "TCGA-LUSC")]
    with pytest.raises(ConfigError, match="TCGA-05-4244 is in LUAD and in TCGA-LUSC"):
        tcga_rows(two, {LUNG: Path(LUNG)})


def test_outcomes_are_read_from_the_older_and_the_newer_clinical_table() -> None:
    """The latest follow-up is used; patients who died without a date, or without any, are left out."""
    columns = ("case_submitter_id", "vital_status", "days_to_death", "days_to_last_follow_up")
    lines = [
        ("TCGA-AA-0001", "Dead", "300", "'--"),
        ("TCGA-AA-0002", "Alive", "'--", "10"),
        ("TCGA-AA-0002", "Alive", "'--", "25"),
        ("TCGA-AA-0003", "Dead", "'--", "40"),
        ("TCGA-AA-0004", "Alive", "'--", "-3"),
    ]
    older = [dict(zip(columns, line, strict=True)) for line in lines]
    newer = [
        {
            "cases.submitter_id": "TCGA-AA-0005",
            "demographic.vital_status": "Dead",
            "demographic.days_to_death": "7",
            "diagnoses.days_to_last_follow_up": "'--",
        }
    ]
    assert outcomes(older) == {"TCGA-AA-0001": (300.0, True), "TCGA-AA-0002": (25.0, False)}
    assert outcomes(newer) == {"TCGA-AA-0005": (7.0, True)}


def test_outcomes_are_in_the_manifest(tmp_path: Path) -> None:
    rows = tcga_rows(
        [line(LUNG, "TCGA-LUAD"), line(SQUAMOUS, "TCGA-LUSC")],
        {LUNG: Path(LUNG), SQUAMOUS: Path(SQUAMOUS)},
        clinical={"TCGA-05-4244": (300.0, True)},
    )
    (tmp_path / "slides.csv").write_text(manifest_text(rows))
    first, second = read_manifest(tmp_path / "slides.csv")
    assert (first.time, first.event, first.site) == (300.0, True, "05")
    assert (second.time, second.event) == (None, None)


def test_the_tcga_command_writes_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "id1").mkdir()
    (tmp_path / "id1" / LUNG).touch()
    sheet = tmp_path / "sheet.tsv"
    sheet.write_text(f"File ID\tFile Name\tProject ID\nid1\t{LUNG}\tTCGA-LUAD\n")
    out = tmp_path / "slides.csv"
    command = ["manifest", "tcga", str(tmp_path), "--sheet", str(sheet), "--out", str(out)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    with out.open(newline="") as file:
        assert [r["label"] for r in csv.DictReader(file)] == ["LUAD"]
    sheet.write_text("File Name\tProject ID\n")
    with pytest.raises(ConfigError, match="no column 'File ID'"):
        CliRunner().invoke(app, command, catch_exceptions=False)


# --- both -----------------------------------------------------------------------------------------------------


def test_a_slide_to_leave_out_must_exist_and_the_count_must_match() -> None:
    rows = [SlideRow("a", Path("a.tif")), SlideRow("b", Path("b.tif"))]
    assert [r.slide_id for r in select_slides(rows, ["a"], 1)] == ["b"]
    with pytest.raises(ConfigError, match="no such slide"):
        select_slides(rows, ["c"])
    with pytest.raises(ConfigError, match="2 slides were found, but the study expects 3"):
        select_slides(rows, count=3)
