"""The demo study: its config, its slides, and the location of its results."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import Progress

from ..config import Config, build_config
from ..project import RunFolder
from .slides import draw_cohort


def demo_config(out: Path, overrides: list[str]) -> Config:
    """Build the demo's config, with slides and run folder below ``out``; ``overrides`` as for ``--set``."""
    text = resources.files(__package__).joinpath("demo.yaml").read_text(encoding="utf-8")
    return build_config(yaml.safe_load(text), overrides, base=out, source="the demo's config")


def draw(out: Path, console: Console, side_px: int) -> Path:
    """Draw the missing slides, of ``side_px`` level-0 pixels a side, with a progress bar; returns the manifest."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("drawing slides", total=None)

        def drawn(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return draw_cohort(out, side_px=side_px, progress=drawn)


def places(config: Config) -> list[str]:
    """Locations of the results, one line each, for display."""
    folder = RunFolder(config.out)
    return [
        f"predictions  {folder.predictions}",
        f"heatmaps     {folder.root / 'heatmap'}  (OME-Zarr: QuPath, napari, vizarr)",
        f"QuPath       {folder.view}  (GeoJSON and load_into_qupath.groovy)",
    ]
