"""``wsi evaluate``: metrics of the predictions and the maps of the whole cohort; report.json has all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import (
    Provenance,
    content_key,
    digest_or_none,
    discard,
    provenance_path,
    read_key,
    read_made_by,
    write_bytes,
    write_provenance,
    write_text,
)
from ..config import EvaluateConfig
from ..csvtable import csv_text, format_number
from ..engine import Job
from ..predict import weights_id
from ..project import Project
from .detections import Detections, detections_csv
from .froc_cohort import COLUMNS as FROC_COLUMNS
from .froc_cohort import ModelFroc, froc_lines, froc_notes, froc_of_models, froc_report
from .map_scores import SlideMaps, channel_means, score_maps
from .plots import froc_png, pictures
from .predictions import Prediction, read_predictions, scored
from .report_tables import (
    MAP_COLUMNS,
    METRIC_COLUMNS,
    PATIENT_COLUMNS,
    Measured,
    channel_report,
    map_line,
    map_notes,
    metric_lines,
    model_notes,
    model_report,
    seeds_report,
)
from .seeds import OverSeeds, over_seeds, seeds_table
from .task_metrics import measures

_log = logging.getLogger("wsi_pipeline")


@dataclass(frozen=True)
class Cohort:
    """The inputs of the stage's only job."""

    predictions: tuple[Prediction, ...]
    patients: tuple[Prediction, ...]
    maps: tuple[SlideMaps, ...]
    folds: Path | None  # train/predictions.csv; None where a given model predicted
    task: str  # of the folds


def jobs(project: Project) -> Iterator[list[Job]]:
    """One job for the cohort. Metrics that need a missing label or annotation are left out.

    Raises ``ArtifactError`` where there are no predictions.
    """
    folder, section = project.folder, project.config.evaluate
    annotations = {slide.slide_id: slide.annotation for slide in project.cohort}
    patient_ids = {slide.patient_id for slide in project.cohort}
    rows = tuple(row for row in read_predictions(folder.predictions) if row.name in annotations)
    patients = tuple(row for row in read_predictions(folder.patients, "patient_id") if row.name in patient_ids)
    folds = folder.train / "predictions.csv"
    own = project.config.predict.model is None and folds.exists()
    maps = _slide_maps(project, rows, annotations)
    cohort = Cohort(rows, patients, maps, folds if own else None, project.config.train.task)
    settings = {name: value for name, value in section.for_key().items() if name not in section.OF_EXPLANATIONS}
    key = content_key(
        stage="evaluate",
        config=settings,
        predictions=[read_key(folder.predictions), read_key(folder.patients), read_key(folds) if own else None],
        task=cohort.task,
        maps=[[s.slide_id, s.patient_id, [[held_out, read_key(m)] for m, held_out in s.maps]] for s in cohort.maps],
        annotations={s.slide_id: digest_or_none(s.annotation) for s in cohort.maps if s.annotation},
    )
    output = folder.evaluate / "report.json"
    provenance = Provenance.of(key, "evaluate", config=settings)
    yield [Job("cohort", output, provenance, evaluate_cohort, (cohort, section), slide=False)]


def evaluate_cohort(cohort: Cohort, section: EvaluateConfig, *, output: Path, provenance: Provenance) -> int:
    """Write the tables, the pictures and, last, report.json; returns the number of predicted slides."""
    provenance_path(output).unlink(missing_ok=True)  # the report is out of date from the first file that changes
    slides, patients = _measured(cohort.predictions, section), _measured(cohort.patients, section)
    maps = score_maps(cohort.maps, section)
    means = channel_means(maps.scores, section)
    for note in maps.notes:
        _log.warning("%s", note)  # an unusable annotation excludes its slide's maps, and is reported

    frocs = _frocs(cohort, section, output.parent)
    seeds = _seeds(cohort, output.parent / "seeds.csv")

    lines = metric_lines(slides, METRIC_COLUMNS) + [line for one in frocs for line in _lesion_lines(one)]
    write_text(output.parent / "metrics.csv", csv_text(METRIC_COLUMNS, lines))
    write_text(
        output.parent / "metrics_patients.csv", csv_text(PATIENT_COLUMNS, metric_lines(patients, PATIENT_COLUMNS))
    )
    write_text(output.parent / "maps.csv", csv_text(MAP_COLUMNS, map(map_line, maps.scores)))
    curves = [(one.model, *one.curve) for one in frocs if one.curve]
    drawn = pictures([one.model for one in slides], section.bins) | {"froc.png": froc_png(curves) if curves else None}
    for name, picture in drawn.items():
        if picture is None:
            discard(output.parent / name)
        else:
            write_bytes(output.parent / name, picture)
    report = {
        "models": {one.model.model: model_report(one, "slides") for one in slides},
        "patients": {one.model.model: model_report(one, "patients") for one in patients},
        "seeds": [seeds_report(one) for one in seeds],
        "maps": [channel_report(*mean) for mean in means],
        "maps_left_out": dict(sorted(maps.left_out.items())),
        "froc": [froc_report(one) for one in frocs],
        "notes": _notes(cohort) + map_notes(maps) + [note for one in frocs for note in froc_notes(one)],
    }
    write_text(output, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_provenance(output, provenance)
    return len({row.name for row in cohort.predictions})


def _measured(rows: Sequence[Prediction], section: EvaluateConfig) -> list[Measured]:
    """The metrics of every model that can be measured, in the order of the rows."""
    models = [found for name in _models(rows) if (found := scored(rows, name)) is not None]
    return [Measured(model, measures(model, section)) for model in models]


def _frocs(cohort: Cohort, section: EvaluateConfig, folder: Path) -> list[ModelFroc]:
    """The FROC of each model, written slide by slide; files of an earlier setting are removed."""
    for old in (folder / "detections").rglob("*.csv"):
        old.unlink()
    if section.froc is None:
        discard(folder / "froc.csv")
        return []

    def keep(model: str, slide_id: str, found: Detections) -> None:
        write_text(folder / "detections" / model / f"{slide_id}.csv", detections_csv(found))

    frocs = froc_of_models(cohort.maps, cohort.predictions, section, keep)
    write_text(folder / "froc.csv", csv_text(FROC_COLUMNS, [line for one in frocs for line in froc_lines(one)]))
    return frocs


def _seeds(cohort: Cohort, output: Path) -> list[OverSeeds]:
    """The models' metrics over the seeds, also written; none where a given model predicted."""
    if cohort.folds is None:
        discard(output)
        return []
    seeds = over_seeds(cohort.folds, cohort.task)
    write_text(output, seeds_table(seeds))
    return seeds


def _lesion_lines(one: ModelFroc) -> list[list[object]]:
    """Lines of metrics.csv."""
    counts = len(one.slides), len({slide.patient_id for slide in one.slides})
    return [
        [
            one.model,
            name,
            format_number(found.value),
            format_number(found.low),
            format_number(found.high),
            *counts,
            "",
            "",
        ]
        for name, found in one.measures.items()
    ]


def _notes(cohort: Cohort) -> list[str]:
    """Notes on slides, and on patients where a patient has several slides."""
    levels = [("slides", cohort.predictions)]
    if len(cohort.patients) < len(cohort.predictions):
        levels.append(("patients", cohort.patients))
    return [note for what, rows in levels for name in _models(rows) for note in model_notes(name, rows, what)]


def _models(rows: Sequence[Prediction]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _slide_maps(
    project: Project, rows: Sequence[Prediction], annotations: Mapping[str, Path | None]
) -> tuple[SlideMaps, ...]:
    """The predicted slides, with the maps of the models that predicted them and of the methods in the config."""
    predicted: dict[str, list[Prediction]] = {}
    for row in rows:
        predicted.setdefault(row.name, []).append(row)
    slides = []
    for slide_id, of_slide in predicted.items():
        files = [
            (project.folder.explanation(row.model, method, slide_id), row)
            for row in of_slide
            for method in (
                *project.methods(row.model),
                *(m for m in project.config.explain.summary_maps if m == "consensus"),
            )
        ]
        maps = tuple((path, row.held_out) for path, row in files if path.exists() and _of_same_members(path, row))
        slides.append(SlideMaps(slide_id, of_slide[0].patient_id, annotations[slide_id], maps))
    return tuple(slides)


def _of_same_members(explanation: Path, row: Prediction) -> bool:
    """Whether the map is of the members that made the prediction; maps of an earlier model are not measured."""
    members = read_made_by(explanation).get("members", ())
    return weights_id(str(member[0]) for member in members) == row.weights
