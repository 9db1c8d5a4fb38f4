"""``wsi heatmap``: one pyramid per slide, one channel per model, method and class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..artifacts import Provenance, content_key, read_key
from ..config import HeatmapConfig
from ..engine import Job
from ..project import Project
from ..store import read_explanations
from ..types import SlideRow
from .sources import Source, source_finder


def first_explanation(project: Project) -> Callable[[str], Path]:
    """A function from slide_id to one of its explanation files; where it has none, to the pattern of their paths."""
    find, folder = source_finder(project), project.folder.root / "explain"
    return lambda slide_id: next((source.path for source in find(slide_id)), folder / "*" / "*" / f"{slide_id}.h5")


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """One pyramid per slide."""
    find = source_finder(project)
    yield [_job(project, slide.slide_id, find(slide.slide_id)) for slide in slides]


def paint_slide(paths: Sequence[Path], config: HeatmapConfig, *, output: Path, provenance: Provenance) -> int:
    """Write one slide's pyramid from its explanation files. Returns the number of cells painted."""
    from .ngff import write_heatmap

    explanations = [e for path in paths for e in read_explanations(path)]
    made = provenance.with_facts(channels=[e.label for e in explanations])
    return write_heatmap(output, explanations, config, made)


def heatmap_key(project: Project, sources: Sequence[Source]) -> str:
    """The key of the pyramid that is made from these explanations."""
    channels = [(s.model, s.method, read_key(s.path)) for s in sources]
    return content_key(stage="heatmap", config=project.config.heatmap.for_key(), channels=channels)


def _job(project: Project, slide_id: str, sources: Sequence[Source]) -> Job:
    config = project.config.heatmap
    provenance = Provenance.of(heatmap_key(project, sources), "heatmap", config=config.for_key())
    arguments = ([s.path for s in sources], config)
    return Job(slide_id, project.folder.heatmap(slide_id), provenance, paint_slide, arguments)
