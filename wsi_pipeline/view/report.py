"""report.html: one self-contained page that needs neither a server nor the network nor the run folder."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

import yaml
from markupsafe import Markup

from .. import __version__
from ..artifacts import Provenance, write_text_with_provenance
from ..config import Config, Section
from ..engine import Failure
from ..evaluate.summary import PICTURES
from ..project import MethodSelection, RunFolder, label_classes
from ..types import SlideRow
from .numbers import (
    NumberTable,
    PredictionTable,
    SlidePrediction,
    read_metrics,
    read_slide_predictions,
    selection_table,
)
from .pages import inline, render, source_text, uid
from .pictures import bar_uri

# The pictures of one slide are about 0.3 MB; a page of 100 slides still opens quickly.
MOST_PICTURED = 100


@dataclass(frozen=True)
class ReportInput:
    """The inputs of the page; it can be pickled to a worker process."""

    config: Config
    slides: tuple[SlideRow, ...]
    panels: dict[str, Path]  # slide_id -> the HTML of its panel
    failures: tuple[Failure, ...]
    versions: tuple[tuple[str, str], ...]
    selections: Mapping[str, MethodSelection]  # model -> its selected method, where ``auto`` is among the methods


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the page."""

    slide_id: str
    uid: str
    patient_id: str
    label: str  # for survival time and event
    predictions: tuple[SlidePrediction | None, ...]  # one per model
    state: str
    failed: bool
    shown: bool  # whether its panel is on the page
    panel: Markup | None
    files: tuple[tuple[str, str], ...]  # name and link


@dataclass(frozen=True)
class Report:
    """The values of the template."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    settings: str
    tables: tuple[NumberTable, ...]
    notes: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...]  # caption, and the picture as a data URI
    models: tuple[str, ...]
    slides: tuple[SlideEntry, ...]
    label: str  # title of the column with the truth
    outcome: str  # title of the columns with the predicted number
    outcome_note: str
    left_out: str
    failures: tuple[Failure, ...]


def write_report(inputs: ReportInput, *, output: Path, provenance: Provenance) -> int:
    """Write ``report.html``; returns the number of slides on it."""
    folder = RunFolder(inputs.config.out)
    bars = "".join(
        f'.bar.{n} {{ background-image: url("{bar_uri(n == "signed")}"); }}\n' for n in ("unsigned", "signed")
    )
    style, style_source = inline(source_text("report.css") + bars)
    script, script_source = inline(source_text("report.js"))
    report = make_report(inputs, folder)
    page = render(
        "report.html",
        report=report,
        style=style,
        style_source=style_source,
        script=script,
        script_source=script_source,
    )
    write_text_with_provenance(output, page, provenance)
    return len(report.slides)


def make_report(inputs: ReportInput, folder: RunFolder) -> Report:
    """Read the contents of the page. Raises ``ArtifactError`` where the tables of predict or evaluate are damaged."""
    predictions = read_slide_predictions(folder.predictions)
    metrics = read_metrics(folder.evaluate / "report.json")
    task = predictions.task or inputs.config.train.task
    slides = tuple(_entry(inputs, folder, row, i, predictions, task) for i, row in enumerate(inputs.slides))
    failed = len({f.slide_id for f in inputs.failures})
    hidden = len(slides) - sum(s.shown for s in slides)
    return Report(
        title="Whole-slide report",
        lead=_lead(inputs.slides, task, failed),
        facts=_facts(inputs.config, inputs.slides, predictions.models, inputs.versions),
        settings=settings(inputs.config),
        tables=(*metrics.tables, *([selection_table(inputs.selections)] if inputs.selections else [])),
        notes=metrics.notes,
        pictures=tuple(
            (caption, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}")
            for name, caption in PICTURES.items()
            if (path := folder.evaluate / name).exists() and (folder.evaluate / "report.json").exists()
        ),
        models=predictions.models,
        slides=slides,
        label="Follow-up" if task == "survival" else "Label",
        outcome=predictions.outcome,
        outcome_note=predictions.note,
        left_out=f"The first {MOST_PICTURED} slides are shown; the other {hidden} are listed above, and their maps are "
        "in heatmap/ and view/."
        if hidden
        else "",
        failures=inputs.failures,
    )


def settings(config: Config) -> str:
    """The settings that determine the results, as YAML: without folders of this machine and numbers of workers."""
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    of_sections = {
        name: {k: getattr(section, k).name if isinstance(getattr(section, k), Path) else v for k, v in values.items()}
        for name, section in sections.items()
        if isinstance(section, Section) and (values := section.for_key())
    }
    return yaml.safe_dump({k: v for k, v in of_sections.items() if v}, sort_keys=False, allow_unicode=True)


def versions() -> tuple[tuple[str, str], ...]:
    """Names and versions of the libraries on which results depend most, as installed."""
    found = [("wsi_pipeline", __version__), ("Python", platform.python_version())]
    for name in ("numpy", "torch", "timm", "openslide-bin", "zarr"):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def _entry(
    inputs: ReportInput, folder: RunFolder, row: SlideRow, index: int, predictions: PredictionTable, task: str
) -> SlideEntry:
    failures = [f for f in inputs.failures if f.slide_id == row.slide_id]
    panel = inputs.panels.get(row.slide_id)
    state = "; ".join(f"failed in {f.stage}: {f.message}" for f in failures)
    if not state:
        state = "done" if panel or index >= MOST_PICTURED else "not processed yet"
    files = (("map (OME-Zarr)", folder.heatmap(row.slide_id)), ("QuPath tiles", folder.tiles(row.slide_id)))
    return SlideEntry(
        slide_id=row.slide_id,
        uid=uid(row.slide_id),
        patient_id=row.patient_id,
        label=_follow_up(row) if task == "survival" else row.label or "",
        predictions=tuple(predictions.get(row.slide_id, model) for model in predictions.models),
        state=state,
        failed=bool(failures),
        shown=index < MOST_PICTURED,
        panel=Markup(panel.read_text(encoding="utf-8")) if panel else None,
        files=tuple((name, quote(str(p.relative_to(folder.root)))) for name, p in files if p.exists()),
    )


def _follow_up(row: SlideRow) -> str:
    if row.time is None or row.event is None:
        return ""
    return f"{row.time:g}, {'event' if row.event else 'censored'}"


def _lead(slides: Sequence[SlideRow], task: str, failed: int) -> str:
    patients = len({row.patient_id for row in slides})
    parts = [f"{_count(len(slides), 'slide')} of {_count(patients, 'patient')}"]
    if labels := _labels(slides, task):
        parts.append(labels)
    if failed:
        parts.append(f"{failed} failed")
    return "; ".join(parts) + "."


def _labels(slides: Sequence[SlideRow], task: str) -> str:
    """Number of slides of each class, or with an event; of regression the number with a value. Empty without labels."""
    if task == "survival":
        events = [row.event for row in slides if row.time is not None and row.event is not None]
        return f"{_count(sum(events), 'event')}, {len(events) - sum(events)} censored" if events else ""
    labels = [row.label for row in slides if row.label]
    if task == "regression":
        return f"{len(labels)} with a value" if labels else ""
    of_slides = [label_classes(label) if task == "multilabel" else [label] for label in labels]
    classes = sorted({name for names in of_slides for name in names})
    return ", ".join(f"{sum(name in names for names in of_slides)} {name}" for name in classes)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _facts(
    config: Config, slides: Sequence[SlideRow], models: Sequence[str], libraries: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    tile, train = config.tile, config.train
    folds = "the manifest's split" if any(s.split for s in slides) else f"{train.folds} patient-level folds"
    overlap = f", {tile.overlap:.0%} overlap" if tile.overlap else ""
    trained = (
        f"applied from {config.predict.model.name}"
        if config.predict.model
        else f"{folds} × {_count(len(train.seeds), 'seed')}"
    )
    return (
        ("Slides", config.slides.name),
        ("Patches", f"{tile.side_px} px at {tile.mpp:g} µm/px{overlap}"),
        ("Tissue", tile.detector),
        ("Encoder", config.embed.encoder + ("" if config.embed.pretrained else " (random weights)")),
        ("Models", ", ".join(models) or "none yet"),
        ("Training", trained),
        ("Maps", ", ".join((*config.explain.methods, *config.explain.summary_maps))),
        ("Made with", ", ".join(f"{name} {number}" for name, number in libraries)),
    )
