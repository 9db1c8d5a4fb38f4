"""The demo study: its config, its slides, and its results as one table."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import yaml
from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Table

from ..config import Config, build_config
from ..project import RunFolder
from .slides import draw_cohort


def demo_config(out: Path, overrides: list[str]) -> Config:
    """The demo's config with its slides and its run below ``out``."""
    text = resources.files(__package__).joinpath("demo.yaml").read_text(encoding="utf-8")
    return build_config(yaml.safe_load(text), overrides, base=out, source="the demo's config")


def draw(out: Path, console: Console) -> Path:
    """Draw the slides that are not there yet; returns the manifest."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("drawing slides", total=None)

        def drawn(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return draw_cohort(out, progress=drawn)


def summary(config: Config) -> Group:
    """Metrics of the models, the maps against the annotations, and where to look."""
    folder = RunFolder(config.out)
    metrics = Table(title="held-out slides (patient-level folds), 95 % intervals by patient")
    for column in ("model", "metric", "value"):
        metrics.add_column(column)
    for row in _rows(folder.evaluate / "metrics.csv"):
        metrics.add_row(
            row["model"], row["metric"], f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"
        )
    maps = Table(title="maps against the annotations, mean over the tumour slides")
    for column in ("model", "method", "slides", "AUPRC", "base rate", "times base rate"):
        maps.add_column(column)
    for (model, method), rows in _by_channel(_rows(folder.evaluate / "maps.csv")).items():
        auprc, base = (sum(float(r[c]) for r in rows) / len(rows) for c in ("auprc", "base_rate"))
        maps.add_row(model, method, str(len(rows)), f"{auprc:.3f}", f"{base:.3f}", f"{auprc / base:.1f}")
    return Group(metrics, maps, *_places(folder))


def _places(folder: RunFolder) -> list[str]:
    return [
        f"report       {folder.report}",
        f"predictions  {folder.predictions}",
        f"heatmaps     {folder.root / 'heatmap'}  (OME-Zarr: QuPath, napari, vizarr)",
        f"QuPath       {folder.view}  (GeoJSON and load_into_qupath.groovy)",
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> str:
    return f"{float(text):.3f}" if text else "–"


def _by_channel(rows: list[dict[str, str]]) -> dict[tuple[str, str], list[dict[str, str]]]:
    channels: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        channels.setdefault((row["model"], row["method"]), []).append(row)
    return channels
