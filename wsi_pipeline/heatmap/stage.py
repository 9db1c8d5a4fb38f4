"""``wsi heatmap``: one pyramid per slide, one channel per model, method and class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..artifacts import Provenance, content_key, read_key
from ..config import HeatmapConfig
from ..engine import Engine, Job
from ..project import Project
from ..store import read_explanations
from .sources import Source, source_finder


def run(project: Project, engine: Engine) -> None:
    """Paint every slide that has an explanation."""
    find = source_finder(project)
    nowhere = project.folder.root / "explain"

    def first(slide_id: str) -> Path:
        return next((source.path for source in find(slide_id)), nowhere / "*" / "*" / f"{slide_id}.h5")

    slides = engine.ready("heatmap", project.slides, first, "explain")
    engine.run("heatmap", [_job(project, slide.slide_id, find(slide.slide_id)) for slide in slides])


def paint_slide(paths: Sequence[Path], config: HeatmapConfig, output: Path, key: str) -> int:
    """Write one slide's pyramid from its explanation files. Returns how many cells were painted."""
    from .ngff import write_heatmap

    explanations = [e for path in paths for e in read_explanations(path)]
    provenance = Provenance.of(key, "heatmap", config=config.for_key(), channels=[e.label for e in explanations])
    return write_heatmap(output, explanations, config, provenance)


def heatmap_key(project: Project, sources: Sequence[Source]) -> str:
    """The key of the pyramid that is made from these explanations."""
    channels = [(s.model, s.method, read_key(s.path)) for s in sources]
    return content_key(stage="heatmap", config=project.config.heatmap.for_key(), channels=channels)


def _job(project: Project, slide_id: str, sources: Sequence[Source]) -> Job:
    output, key = project.folder.heatmap(slide_id), heatmap_key(project, sources)
    arguments = ([s.path for s in sources], project.config.heatmap, output, key)
    return Job(slide_id, output, key, paint_slide, arguments)
