"""report.html: one page that needs nothing else, neither a server nor the network nor the run folder."""

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
from ..project import MethodSelection, RunFolder
from ..types import SlideRow
from .numbers import NumberTable, Verdict, Verdicts, choice_table, read_metrics, read_verdicts
from .pages import inline, render, source_text, uid
from .pictures import bar_uri

# Pictures of one slide are about 0.3 MB; a page of 100 slides still opens at once.
MOST_PICTURED = 100


@dataclass(frozen=True)
class ReportInput:
    """What the page is made from; crosses process borders."""

    config: Config
    slides: tuple[SlideRow, ...]
    panels: dict[str, Path]  # slide_id -> its fragment
    failures: tuple[Failure, ...]
    versions: tuple[tuple[str, str], ...]
    choices: Mapping[str, MethodSelection]  # by model: the method that was picked, where auto is among the methods


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the page."""

    slide_id: str
    uid: str
    patient_id: str
    label: str
    verdicts: tuple[Verdict | None, ...]  # one a model
    state: str
    failed: bool
    shown: bool  # whether it has a place among the pictures
    panel: Markup | None
    files: tuple[tuple[str, str], ...]  # name and link


@dataclass(frozen=True)
class Report:
    """What the template is given."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    settings: str
    tables: tuple[NumberTable, ...]
    notes: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...]  # what it is, and the picture as a data URI
    models: tuple[str, ...]
    slides: tuple[SlideEntry, ...]
    outcome: str
    probability_note: str
    left_out: str
    failures: tuple[Failure, ...]


def write_report(inputs: ReportInput, key: str) -> int:
    """Write the page; returns the number of slides on it."""
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
    write_text_with_provenance(folder.report, page, Provenance.of(key, "view", config=inputs.config.view.for_key()))
    return len(report.slides)


def make_report(inputs: ReportInput, folder: RunFolder) -> Report:
    """Read what is shown."""
    verdicts = read_verdicts(folder.predictions)
    metrics = read_metrics(folder.evaluate / "report.json")
    slides = tuple(_entry(inputs, folder, row, i, verdicts) for i, row in enumerate(inputs.slides))
    failed = len({f.slide_id for f in inputs.failures})
    hidden = len(slides) - sum(s.shown for s in slides)
    return Report(
        title="Whole-slide report",
        lead=_lead(inputs, failed),
        facts=_facts(inputs.config, inputs.slides, verdicts.models, inputs.versions),
        settings=settings(inputs.config),
        tables=(*metrics.tables, *([choice_table(inputs.choices)] if inputs.choices else [])),
        notes=metrics.notes,
        pictures=tuple(
            (what, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}")
            for name, what in PICTURES.items()
            if (path := folder.evaluate / name).exists() and (folder.evaluate / "report.json").exists()
        ),
        models=verdicts.models,
        slides=slides,
        outcome=verdicts.outcome,
        probability_note=verdicts.note,
        left_out=f"The first {MOST_PICTURED} slides are shown; the other {hidden} are listed above, and their maps are "
        "in heatmap/ and view/."
        if hidden
        else "",
        failures=inputs.failures,
    )


def settings(config: Config) -> str:
    """What decides the results, as YAML: no folder of this machine, no number of workers."""
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    chosen = {
        name: {k: getattr(section, k).name if isinstance(getattr(section, k), Path) else v for k, v in values.items()}
        for name, section in sections.items()
        if isinstance(section, Section) and (values := section.for_key())
    }
    return yaml.safe_dump({k: v for k, v in chosen.items() if v}, sort_keys=False, allow_unicode=True)


def versions() -> tuple[tuple[str, str], ...]:
    """The libraries that numbers depend on most, as installed where the page is made."""
    found = [("wsi_pipeline", __version__), ("Python", platform.python_version())]
    for name in ("numpy", "torch", "timm", "openslide-bin", "zarr"):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def _entry(
    inputs: ReportInput,
    folder: RunFolder,
    row: SlideRow,
    index: int,
    verdicts: Verdicts,
) -> SlideEntry:
    failures = [f for f in inputs.failures if f.slide_id == row.slide_id]
    panel = inputs.panels.get(row.slide_id)
    state = "; ".join(f"failed in {f.stage}: {f.message}" for f in failures)
    if not state:
        state = "done" if panel or index >= MOST_PICTURED else "not worked on yet"
    wanted = (("map (OME-Zarr)", folder.heatmap(row.slide_id)), ("QuPath tiles", folder.tiles(row.slide_id)))
    return SlideEntry(
        slide_id=row.slide_id,
        uid=uid(row.slide_id),
        patient_id=row.patient_id,
        label=row.label or "",
        verdicts=tuple(verdicts.get(row.slide_id, model) for model in verdicts.models),
        state=state,
        failed=bool(failures),
        shown=index < MOST_PICTURED,
        panel=Markup(panel.read_text(encoding="utf-8")) if panel else None,
        files=tuple((name, quote(str(p.relative_to(folder.root)))) for name, p in wanted if p.exists()),
    )


def _lead(inputs: ReportInput, failed: int) -> str:
    patients = len({row.patient_id for row in inputs.slides})
    labels = sorted({row.label for row in inputs.slides if row.label})
    parts = [f"{_count(len(inputs.slides), 'slide')} of {_count(patients, 'patient')}"]
    if labels:
        counts = [f"{sum(row.label == label for row in inputs.slides)} {label}" for label in labels]
        parts.append(", ".join(counts))
    if failed:
        parts.append(f"{failed} failed")
    return "; ".join(parts) + "."


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
