"""``wsi view``: QuPath tiles, the script that loads them, a panel per slide, and the report of the whole cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..artifacts import Provenance, content_key, digest_or_none, is_current, provenance_path, read_key, write_provenance
from ..config import ViewConfig
from ..engine import Failure, Job
from ..evaluate.summary import PICTURES
from ..heatmap.metadata import primary
from ..heatmap.sources import Source, method_selections, source_finder
from ..heatmap.stage import heatmap_key
from ..project import Project
from ..store import read_explanations, read_grid
from ..types import SlideRow
from .groovy import LOADER, loader_text, slides_text, write_loader
from .panel import PanelInput, write_panel
from .report import MOST_PICTURED, ReportInput, settings, versions, write_report


def jobs(project: Project, slides: Sequence[SlideRow], failures: Sequence[Failure]) -> Iterator[list[Job]]:
    """QuPath tiles, panels and the loader script; then the report.

    ``slides``: those that have a grid and have not failed. Slides without an explanation, and those that failed, are
    in the report as well. ``failures``: all of this call, which the report lists.
    """
    find = source_finder(project)
    # The files of a failed slide in explain/ and heatmap/ may come from an earlier run: they are not shown.
    sources = {slide.slide_id: find(slide.slide_id) for slide in slides}
    gridded = [slide for slide in project.slides if project.folder.grid(slide.slide_id).exists()]
    pictured = {slide.slide_id for slide in project.cohort[:MOST_PICTURED]}
    panels = [_panel_job(project, s, sources.get(s.slide_id, [])) for s in gridded if s.slide_id in pictured]
    tiles = [_tiles_job(project, s, sources[s.slide_id]) for s in slides if sources[s.slide_id]]
    yield [*tiles, *panels, _loader_job(project)]
    yield [_report_job(project, tuple(failures), {job.name: job for job in panels})]


def write_tiles_of(
    paths: Sequence[Path], first: int, grid: Path, section: ViewConfig, *, output: Path, provenance: Provenance
) -> int:
    """Write one slide's GeoJSON; ``first``: index into ``paths`` of the scores that select where tiles are too many."""
    from ..tile.contours import mask_polygons
    from .qupath_tiles import write_tiles

    provenance_path(output).unlink(missing_ok=True)  # killed below, the tiles are not current
    of_path = [read_explanations(path) for path in paths]
    before = sum(len(explanations) for explanations in of_path[:first])
    explanations = [e for group in of_path for e in group]
    tissue = mask_polygons(read_grid(grid)[1])
    written = write_tiles(output, explanations, before, section.max_tiles, tissue)
    write_provenance(output, provenance.with_facts(tiles=written, patches=len(explanations[0].grid)))
    return written


def _tiles_job(project: Project, slide: SlideRow, sources: Sequence[Source]) -> Job:
    section, grid = project.config.view, project.folder.grid(slide.slide_id)
    key = content_key(
        stage="view",
        part="tiles",
        most=section.max_tiles,
        grid=read_key(grid),
        explanations=[(s.model, s.method, read_key(s.path)) for s in sources],
    )
    provenance = Provenance.of(key, "view", config=section.for_key())
    arguments = ([s.path for s in sources], _first(sources), grid, section)
    return Job(slide.slide_id, project.folder.tiles(slide.slide_id), provenance, write_tiles_of, arguments)


def _panel_job(project: Project, slide: SlideRow, sources: Sequence[Source]) -> Job:
    folder, config = project.folder, project.config
    output = folder.view / "panels" / f"{slide.slide_id}.html"
    heatmap, grid = folder.heatmap(slide.slide_id), folder.grid(slide.slide_id)
    first = sources[_first(sources)].path if sources else None
    painted = bool(sources) and is_current(heatmap, heatmap_key(project, sources))
    inputs = PanelInput(
        slide=slide,
        read=config.read,
        view=config.view,
        tumour_classes=config.evaluate.tumour_classes,
        grid=grid,
        heatmap=heatmap if painted else None,
        explanation=first,
        imported=config.embed.import_ is not None,
    )
    key = content_key(
        stage="view",
        part="panel",
        config=config.view.for_key(),
        read=config.read.for_key(),
        name=slide.path.name,
        mpp=slide.mpp,
        pictured=slide.path.exists() if inputs.imported else True,
        tumour_classes=config.evaluate.tumour_classes,
        annotation=digest_or_none(slide.annotation),
        upstream=[read_key(path) if path else None for path in (grid, inputs.heatmap, first)],
    )
    provenance = Provenance.of(key, "view", config=config.view.for_key())
    return Job(slide.slide_id, output, provenance, write_panel, (inputs,))


def _loader_job(project: Project) -> Job:
    output = project.folder.view / LOADER
    key = content_key(stage="view", part="loader", script=loader_text(), slides=slides_text(project.cohort))
    return Job("QuPath loader", output, Provenance.of(key, "view"), write_loader, (project.cohort,), slide=False)


def _report_job(project: Project, failures: tuple[Failure, ...], panels: dict[str, Job]) -> Job:
    """The report is of the whole cohort, whichever slides this call works on."""
    folder = project.folder
    current_panels = {}
    for slide in project.cohort[:MOST_PICTURED]:
        job = panels.get(slide.slide_id)
        path = folder.view / "panels" / f"{slide.slide_id}.html"
        if is_current(path, job.key) if job else read_key(path) is not None:
            current_panels[slide.slide_id] = path
    selections = method_selections(project)
    inputs = ReportInput(project.config, project.cohort, current_panels, failures, versions(), selections)
    numbers = (folder.predictions, *(folder.evaluate / name for name in ("report.json", *PICTURES)))
    shown = [folder.heatmap(s.slide_id).exists() + 2 * folder.tiles(s.slide_id).exists() for s in project.cohort]
    key = content_key(
        stage="view",
        part="report",
        settings=settings(project.config),
        slides=[(s.slide_id, s.patient_id, s.label) for s in project.cohort],
        manifest=project.config.slides.name,
        panels={name: read_key(path) for name, path in current_panels.items()},
        files=shown,
        numbers=[digest_or_none(path) for path in numbers],
        failures=[vars(f) for f in inputs.failures],
        versions=inputs.versions,
        selections={model: asdict(choice) for model, choice in selections.items()},
    )
    provenance = Provenance.of(key, "view", config=project.config.view.for_key())
    return Job("cohort", folder.report, provenance, write_report, (inputs,), slide=False)


def _first(sources: Sequence[Source]) -> int:
    return primary([(s.model, s.method) for s in sources], [s.selected for s in sources])
