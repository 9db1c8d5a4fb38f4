"""A run over two hundred damaged slides finishes, and each slide ends with a bag or a line in failures.csv."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from damage import damage_file
from test_read_jpeg import write_slide

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.demo import draw_slide
from wsi_pipeline.read import open_slide
from wsi_pipeline.store import read_bag

pytestmark = pytest.mark.slow

SLIDES = 200
TIME_LIMIT_S = 10
SETTINGS = {
    "slides": "slides.csv",
    "out": "run",
    "tile": {"mpp": 0.5, "side_px": 64},
    "embed": {"encoder": "timm:test_efficientnet.r160_in1k", "pretrained": False},
    "engine": {"kind": "local", "workers": 2, "slide_timeout_s": TIME_LIMIT_S},
}


def wsi(stage: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_pipeline", stage, str(folder / "config.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_cohort_of_damaged_slides(tmp_path: Path) -> None:
    draw_slide(tmp_path / "drawn.tif", side_px=1000, seed=0, tumour=True)
    with open_slide(tmp_path / "drawn.tif", ReadConfig()) as slide:
        pixels = slide.read((0, 0), 0, slide.sizes[0])
    intact = [
        write_slide(tmp_path / "rgb.svs", rgb=True, tile=128, pixels=pixels),
        write_slide(tmp_path / "ycbcr.svs", tile=128, pixels=pixels),
        write_slide(tmp_path / "generic.tif", tile=128, pixels=pixels),
    ]
    rows = ["slide_id,path,mpp"]
    for number in range(SLIDES):
        source = intact[number // 6 % len(intact)]
        path = tmp_path / f"{number}{source.suffix}"
        how = damage_file(source, path, number)
        rows.append(f"{number}-{how},{path.name},0.5")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))

    for stage in ("tile", "embed"):
        done = wsi(stage, tmp_path)
        assert done.returncode == 1, done.stderr

    with (tmp_path / "run" / "failures.csv").open(newline="") as file:
        failures = {line["slide_id"]: line for line in csv.DictReader(file)}
    bags = {path.stem: read_bag(path) for path in (tmp_path / "run" / "embed").glob("*.h5")}
    names = {row.split(",")[0] for row in rows[1:]}
    assert set(failures) | set(bags) == names
    assert set(failures) & set(bags) == set()
    assert [line for line in failures.values() if "unforeseen" in line["message"]] == []
    partial = sum(len(bag.unreadable_px0) > 0 for bag in bags.values())
    print(Counter(line["error"] for line in failures.values()), len(bags), "bags,", partial, "of them incomplete")
    assert partial >= 20
    assert len(failures) >= 60
