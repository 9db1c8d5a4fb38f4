"""``wsi evaluate``: measure the predictions and the maps of the whole cohort; report.json says it all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import EvaluateConfig
from ..engine import Engine, Job
from ..errors import ArtifactError
from ..files import (
    Provenance,
    content_key,
    digest_or_none,
    discard,
    made_path,
    read_key,
    read_made_by,
    write_bytes,
    write_made,
    write_text,
)
from ..predict import weights_id
from ..project import Project
from ..train.table import number, table
from .bootstrap import Interval, intervals
from .maps import MEANS, MapScore, MapScores, SlideMaps, channel_means, score_maps
from .metrics import METRICS, decide, slide_metrics
from .predictions import Prediction, Scored, left_out, read_predictions, scored
from .roc import roc_png

_log = logging.getLogger("wsi_pipeline")
METRIC_COLUMNS = ("model", "metric", "value", "low", "high", "n_slides", "n_patients")
MAP_COLUMNS = (
    *("slide_id", "model", "method", "target", "held_out"),
    *("auprc", "base_rate", "lift", "auroc", "n_patches", "n_positive"),
)


@dataclass(frozen=True)
class Cohort:
    """What the one job of this stage reads."""

    predictions: tuple[Prediction, ...]
    maps: tuple[SlideMaps, ...]


def run(project: Project, engine: Engine) -> None:
    """One job for the cohort. Labels and annotations that are missing leave out what they are needed for.

    Raises ``ArtifactError`` where there are no predictions.
    """
    path = project.folder.predictions
    if not path.exists():
        raise ArtifactError(f"{path} is not there; run `wsi predict` first")
    section = project.config.evaluate
    annotations = {slide.slide_id: slide.annotation for slide in project.cohort}
    rows = tuple(row for row in read_predictions(path) if row.slide_id in annotations)
    cohort = Cohort(rows, _slide_maps(project, rows, annotations))
    key = content_key(
        stage="evaluate",
        config=section.for_key(),
        predictions=read_key(path),
        maps=[[s.slide_id, s.patient_id, [[held_out, read_key(m)] for m, held_out in s.maps]] for s in cohort.maps],
        annotations={s.slide_id: digest_or_none(s.annotation) for s in cohort.maps if s.annotation},
    )
    output = project.folder.evaluate / "report.json"
    provenance = Provenance.of(key, "evaluate", config=section.for_key())
    engine.run("evaluate", [Job("cohort", output, key, evaluate_cohort, (cohort, section, output, provenance))])


def evaluate_cohort(cohort: Cohort, section: EvaluateConfig, output: Path, provenance: Provenance) -> int:
    """Write metrics.csv, maps.csv, roc.png and, last, report.json; returns the number of slides that were looked at."""
    made_path(output).unlink(missing_ok=True)  # the report is out of date from the first file that changes
    rows = cohort.predictions
    names = list(dict.fromkeys(row.model for row in rows))
    models = [found for name in names if (found := scored(rows, name)) is not None]
    measured = [(model, model_intervals(model, section)) for model in models]
    maps = score_maps(cohort.maps, section)
    means = channel_means(maps.scores, section)
    for note in maps.notes:
        _log.warning("%s", note)  # an annotation that cannot be used costs its slide's maps, and is said aloud
    notes = [note for name in names for note in model_notes(name, rows)] + map_notes(maps)

    write_text(output.parent / "metrics.csv", table(METRIC_COLUMNS, _metric_lines(measured)))
    write_text(output.parent / "maps.csv", table(MAP_COLUMNS, map(_map_line, maps.scores)))
    picture = output.parent / "roc.png"
    if _two_sided(models):
        write_bytes(picture, roc_png(models))
    else:
        discard(picture)
    report = {
        "models": {model.model: _model_report(model, found) for model, found in measured},
        "maps": [_channel_report(*mean) for mean in means],
        "maps_left_out": dict(sorted(maps.left_out.items())),
        "notes": notes,
    }
    write_text(output, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_made(output, provenance)
    return len({row.slide_id for row in rows})


def model_intervals(model: Scored, section: EvaluateConfig) -> dict[str, Interval]:
    """``METRICS`` of one model's labelled, held-out slides."""
    predicted = decide(model.probabilities, model.threshold)
    return intervals(
        lambda rows: slide_metrics(model.truth[rows], model.probabilities[rows], predicted[rows]),
        model.patients,
        section.bootstrap,
        section.seed,
    )


def model_notes(name: str, rows: Sequence[Prediction]) -> list[str]:
    """What cannot be said of a model, and why."""
    notes = left_out(rows, name)
    model = scored(rows, name)
    if model is None:
        return [*notes, f"{name}: no labelled, held-out slide, so no metrics"]
    absent = [c for i, c in enumerate(model.classes) if not (model.truth == i).any()]
    if absent:
        notes.append(f"{name}: no slide of class {', '.join(absent)}, so no metric but accuracy")
    if len(set(model.patients)) < 2:
        notes.append(f"{name}: one patient only, so no intervals")
    return notes


def map_notes(maps: MapScores) -> list[str]:
    """What cannot be said of the maps, and why."""
    notes = list(maps.notes)
    if not maps.scores:
        notes.append("maps: no slide with an annotated patch, so no map is measured")
    seen = len({(score.slide_id, score.model) for score in maps.scores if not score.held_out})
    if seen:
        notes.append(f"maps: {seen} annotated slides were seen in training; they stand in maps.csv, not in the means")
    return notes


def _slide_maps(
    project: Project, rows: Sequence[Prediction], annotations: Mapping[str, Path | None]
) -> tuple[SlideMaps, ...]:
    """The predicted slides, with the maps of the models that predicted them and of the methods in the config."""
    judged: dict[str, list[Prediction]] = {}
    for row in rows:
        judged.setdefault(row.slide_id, []).append(row)
    slides = []
    for slide_id, judgements in judged.items():
        files = [
            (project.folder.explanation(row.model, method, slide_id), row)
            for row in judgements
            for method in project.config.explain.methods
        ]
        maps = tuple((path, row.held_out) for path, row in files if path.exists() and _of_same_members(path, row))
        slides.append(SlideMaps(slide_id, judgements[0].patient_id, annotations[slide_id], maps))
    return tuple(slides)


def _of_same_members(explanation: Path, row: Prediction) -> bool:
    """Whether the map is of the members that made the prediction; one of an earlier model is not measured."""
    members = read_made_by(explanation).get("members", ())
    return weights_id(str(member[0]) for member in members) == row.weights


def _two_sided(models: Sequence[Scored]) -> bool:
    """Whether there is one curve to draw."""
    return any(len(set(model.truth.tolist())) > 1 for model in models)


def _metric_lines(measured: Sequence[tuple[Scored, dict[str, Interval]]]) -> list[list[object]]:
    return [
        [
            *(model.model, metric, number(found[metric].value), number(found[metric].low), number(found[metric].high)),
            *(len(model.truth), len(set(model.patients))),
        ]
        for model, found in measured
        for metric in METRICS
    ]


def _map_line(score: MapScore) -> list[object]:
    found = score.found
    measures = [number(value) for value in (found.auprc, found.base_rate, found.lift, found.auroc)]
    held_out = str(score.held_out).lower()
    return [score.slide_id, *score.channel, held_out, *measures, found.n_patches, found.n_positive]


def _model_report(model: Scored, found: dict[str, Interval]) -> dict[str, object]:
    return {
        "classes": list(model.classes),
        "n_slides": len(model.truth),
        "n_patients": len(set(model.patients)),
        "n_per_class": {name: int((model.truth == i).sum()) for i, name in enumerate(model.classes)},
        "metrics": {metric: _interval_report(found[metric]) for metric in METRICS},
    }


def _channel_report(example: MapScore, slides: int, means: dict[str, Interval]) -> dict[str, object]:
    what = {"model": example.model, "method": example.method, "target": example.target, "n_slides": slides}
    return what | {name: _interval_report(means[name]) for name in MEANS}


def _interval_report(interval: Interval) -> dict[str, float | int | None]:
    """Six decimals; null where there is no number. ``resamples``: those the interval rests on."""
    numbers = {name: getattr(interval, name) for name in ("value", "low", "high")}
    rounded = {name: None if value != value else round(value, 6) for name, value in numbers.items()}
    return rounded | {"resamples": interval.n}
