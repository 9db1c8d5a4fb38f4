"""The studies' workflows are built without data, and run completely on miniature cohorts with the real folders."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsi_pipeline.demo import draw_slide

pytestmark = pytest.mark.slow

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
MINIATURE: dict[str, Any] = {
    "data": "data",
    "out": "out",
    "encoders": [{"id": "tiny", "embed": {"encoder": "timm:test_efficientnet.r160_in1k", "pretrained": False}}],
    "models": ["abmil"],
    "settings": {
        "tile": {"mpp": 1.0, "side_px": 64},
        "train": {"folds": 2, "epochs": 2, "val_fraction": 0.34},
        "explain": {"methods": ["attention", "instance"]},
        "evaluate": {"bootstrap": 20},
        "view": {"top_patches": 2, "thumbnail_px": 100},
        "engine": {"kind": "serial"},
    },
    "threads": {"bags": 1, "train": 1, "predict": 1, "explain": 1, "view": 1},
}


def snakemake(study: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", WORKFLOWS / study / "Snakefile", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "XDG_CACHE_HOME": str(folder / "cache")},
    )


def counts(text: str) -> dict[str, int]:
    """Rule -> number of jobs, from snakemake's output."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(study: str, folder: Path, **own: Any) -> Path:
    """Run a whole study in ``folder``; returns its OUT. If it fails, the logs are shown."""
    settings = {**MINIATURE["settings"], **own.get("settings", {})}
    (folder / "mini.yaml").write_text(yaml.safe_dump({**MINIATURE, **own, "settings": settings}))
    done = snakemake(study, folder, "--configfile", "mini.yaml", "--cores", 2)
    logs = "\n".join(p.read_text() for p in sorted((folder / "out" / "logs").glob("*.txt")))
    assert done.returncode == 0, done.stderr + logs
    return folder / "out"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """normal_0 … normal_3 and tumor_0 … tumor_3, the latter with their annotations."""
    folder = tmp_path_factory.mktemp("drawn")
    for i in range(4):
        draw_slide(folder / f"normal_{i}.tif", side_px=900, seed=i)
        draw_slide(
            folder / f"tumor_{i}.tif", side_px=900, seed=10 + i, tumour=True, annotation=folder / f"tumor_{i}.xml"
        )
    return folder


def place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@pytest.mark.parametrize(("study", "explained"), [("camelyon16", 60), ("tcga_nsclc", 12), ("tcga_rcc", 12)])
def test_the_graph_is_built_without_data(study: str, explained: int, tmp_path: Path) -> None:
    """Two encoders, six models, five seeds: embedded twice, trained sixty times."""
    done = snakemake(study, tmp_path, "-n")
    assert done.returncode == 0, done.stderr
    assert counts(done.stdout + done.stderr) == {
        "all": 1,
        "manifest": 1,
        "bags_config": 2,
        "bags": 2,
        "run_config": 60,
        "train": 60,
        "predict": 60,
        "explain": explained,
        "evaluate": 60,
        "view": 12,
        "summary": 1,
        "total": 259 + explained,
    }
    assert not (tmp_path / "studies").exists()


def test_a_mistake_in_a_study_is_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "mistake.yaml").write_text("settings: {train: {epoch: 3}}\n")
    done = snakemake("camelyon16", tmp_path, "-n", "--configfile", "mistake.yaml")
    assert done.returncode != 0
    assert "unknown key 'train.epoch'" in done.stdout + done.stderr


def test_slurm_jobs_request_the_resources_of_the_profile(tmp_path: Path) -> None:
    done = snakemake("camelyon16", tmp_path, "-n", "--profile", WORKFLOWS / "profiles" / "slurm")
    assert done.returncode == 0, done.stderr
    jobs = re.split(r"\n(?:local)?rule ", done.stdout + done.stderr)
    gpus = defaultdict(set)
    for job in jobs[1:]:
        gpus[job.split(":")[0]].add("gpu=1" in job)
    assert {rule for rule, found in gpus.items() if found == {True}} == {"bags", "train", "explain"}
    assert {rule for rule, found in gpus.items() if found == {False}} >= {"predict", "evaluate", "view", "manifest"}


def test_camelyon16_in_miniature(drawn: Path, tmp_path: Path) -> None:
    """The challenge's folders, with a slide that must not be used and one whose annotation must not."""
    data = tmp_path / "data"
    for i in range(3):
        place(drawn / f"normal_{i}.tif", data / "training" / "normal" / f"normal_00{i + 1}.tif")
        place(drawn / f"tumor_{i}.tif", data / "training" / "tumor" / f"tumor_00{i + 1}.tif")
        place(drawn / f"tumor_{i}.xml", data / "training" / "lesion_annotations" / f"tumor_00{i + 1}.xml")
    place(drawn / "normal_3.tif", data / "testing" / "images" / "test_001.tif")
    place(drawn / "tumor_3.tif", data / "testing" / "images" / "test_002.tif")
    lesion = data / "testing" / "lesion_annotations" / "test_002.xml"  # 350 µm: more than isolated tumour cells
    corners = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in ((100, 100), (800, 100), (800, 800), (100, 800)))
    lesion.parent.mkdir()
    lesion.write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="0" Type="Polygon" PartOfGroup="Tumor">'
        f"<Coordinates>{corners}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    (data / "testing" / "reference.csv").write_text("test_001,Normal,None,None\ntest_002,Tumor,IDC,Macro\n")
    (data / "testing" / "images" / "test_049.tif").write_bytes(b"a duplicate, never opened")
    settings = {"evaluate": {"bootstrap": 20, "froc": "instance"}}
    seeds = {"seeds": [0, 1], "explain_seeds": [0, 1], "view_seeds": [0]}
    out = run("camelyon16", tmp_path, manifest={"count": 8}, settings=settings, **seeds)

    predicted = {(r["slide_id"], r["split"]) for r in rows(out / "tiny/abmil/seed0/predict/predictions.csv")}
    assert {("test_001", "test"), ("test_002", "test"), ("tumor_001", "train")} <= predicted
    assert "test_049" not in {slide for slide, _ in predicted}
    for seed in (0, 1):
        assert (out / f"tiny/abmil/seed{seed}/embed").resolve() == (out / "tiny/bags/embed").resolve()
    assert (out / "tiny/abmil/seed0/report.html").exists()
    assert not (out / "tiny/abmil/seed1/report.html").exists()
    found = {r["measure"]: r for r in rows(out / "summary.csv")}
    assert found["auroc"]["runs"] == "2"
    assert found["auroc"]["sd"] != ""
    assert {"map_auprc:attention", "map_auprc:instance", "froc"} <= set(found)
    assert "| abmil |" in (out / "summary.md").read_text()
    again = snakemake("camelyon16", tmp_path, "--configfile", "mini.yaml", "--cores", 2)
    assert "Nothing to be done" in again.stdout + again.stderr


def tcga(drawn: Path, data: Path, projects: tuple[str, ...]) -> None:
    """Four sites, one patient of each project at each; the GDC client's folders, the portal's sheets."""
    sheet, clinical = ["File ID\tFile Name\tProject ID\tCase ID"], ["case_submitter_id\tvital_status\tdays_to_death"]
    for site in range(4):
        for kind, project in enumerate(projects):
            patient = f"TCGA-0{site}-000{kind}"
            name = f"{patient}-01Z-00-DX1.0a1b.svs"
            place(drawn / f"{('normal', 'tumor')[kind % 2]}_{site}.tif", data / f"id{site}{kind}" / name)
            sheet.append(f"id{site}{kind}\t{name}\t{project}\t{patient}")
            sheet.append(f"frozen{site}{kind}\t{patient}-01A-01-TS1.0a1b.svs\t{project}\t{patient}")
            clinical.append(f"{patient}\tDead\t{100 + site}")
    (data / "sheet.tsv").write_text("\n".join(sheet) + "\n")
    (data / "clinical.tsv").write_text("\n".join(clinical) + "\n")


@pytest.mark.parametrize(
    ("study", "projects"),
    [("tcga_nsclc", ("TCGA-LUAD", "TCGA-LUSC")), ("tcga_rcc", ("TCGA-KIRC", "TCGA-KIRP", "TCGA-KICH"))],
)
def test_tcga_in_miniature(study: str, projects: tuple[str, ...], drawn: Path, tmp_path: Path) -> None:
    """No site is in two folds, and frozen sections are not needed."""
    tcga(drawn, tmp_path / "data", projects)
    manifest = {"sheet": "data/sheet.tsv", "clinical": "data/clinical.tsv", "count": 4 * len(projects)}
    out = run(study, tmp_path, manifest=manifest, seeds=[0], explain_seeds=[], view_seeds=[])

    site = {r["slide_id"]: r["site"] for r in rows(out / "slides.csv")}
    assert set(site.values()) == {"00", "01", "02", "03"}
    folds = defaultdict(set)
    for r in rows(out / "tiny/abmil/seed0/train/predictions.csv"):
        if r["part"] == "test":
            folds[r["fold"]].add(site[r["slide_id"]])
    assert sorted(len(sites) for sites in folds.values()) in ([2, 2], [1, 3])
    assert set.intersection(*folds.values()) == set()
    found = {r["measure"]: r for r in rows(out / "summary.csv")}
    assert (found["auroc"]["runs"], found["auroc"]["sd"]) == ("1", "")
