"""Every map of every slide against the slide's annotation, and the means of each channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from shapely.geometry.base import BaseGeometry

from ..config import EvaluateConfig
from ..errors import ConfigError
from ..read.annotations import read_annotation
from ..store import read_explanations
from ..types import Bool, Explanation, Int64
from .bootstrap import Interval, intervals
from .localisation import Localisation, annotated_shares, localisation, positive_patches

MEANS = ("auprc", "base_rate", "lift", "auroc")


@dataclass(frozen=True)
class SlideMaps:
    """Where the maps of one slide are, and what they are measured against."""

    slide_id: str
    patient_id: str
    annotation: Path | None
    maps: tuple[tuple[Path, bool], ...]  # an explanation file, and whether its model has not seen the patient


@dataclass(frozen=True)
class MapScore:
    """One channel of one slide."""

    slide_id: str
    patient_id: str
    model: str
    method: str
    target: str
    held_out: bool
    found: Localisation

    @property
    def channel(self) -> tuple[str, str, str]:
        return self.model, self.method, self.target


@dataclass
class MapScores:
    """What could be measured, and what could not."""

    scores: list[MapScore] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> slides
    notes: list[str] = field(default_factory=list)


def score_maps(slides: Iterable[SlideMaps], section: EvaluateConfig) -> MapScores:
    """All slides' maps. A slide without annotation, or without a positive patch, is counted and left out."""
    result = MapScores()
    for slide in slides:
        if slide.annotation is None or not slide.maps:
            result.left_out["no map" if slide.annotation else "no annotation"] += 1
            continue
        explanations = [(e, held_out) for path, held_out in slide.maps for e in read_explanations(path)]
        try:
            annotation = read_annotation(slide.annotation, explanations[0][0].grid.bounds_px0)
        except ConfigError as error:  # what somebody drew, not what this run made: the other slides still count
            result.left_out["unreadable annotation"] += 1
            result.notes.append(f"{slide.slide_id}: {error}")
            continue
        result.notes += [f"{slide.slide_id}: annotation {note}" for note in annotation.notes]
        found = _slide_scores(slide, explanations, annotation.area(section.tumour_classes))
        result.left_out["no patch inside the annotation"] += not found
        result.scores += found
    result.left_out = +result.left_out
    return result


def channel_means(
    scores: Sequence[MapScore], section: EvaluateConfig
) -> list[tuple[MapScore, int, dict[str, Interval]]]:
    """For each channel, in order: one of its maps, the number of slides, and the means with intervals over patients.

    Only maps of models that have not seen the patient count.
    """
    channels: dict[tuple[str, str, str], list[MapScore]] = {}
    for score in scores:
        if score.held_out:
            channels.setdefault(score.channel, []).append(score)
    means = []
    for members in channels.values():
        table = np.array([[getattr(m.found, name) for name in MEANS] for m in members])  # (slides, measures)

        def statistic(rows: Int64, table: np.ndarray = table) -> dict[str, float]:
            return {name: _mean(table[rows, i]) for i, name in enumerate(MEANS)}

        patients = [m.patient_id for m in members]
        means.append((members[0], len(members), intervals(statistic, patients, section.bootstrap, section.seed)))
    return means


def _slide_scores(
    slide: SlideMaps, explanations: Sequence[tuple[Explanation, bool]], area: BaseGeometry
) -> list[MapScore]:
    positives: dict[bytes, Bool] = {}  # one entry, as all maps of a slide stand on one grid, unless some are older
    scores = []
    for explanation, held_out in explanations:
        corners = explanation.grid.xy_px0.tobytes()
        if corners not in positives:
            positives[corners] = positive_patches(annotated_shares(area, explanation.grid))
        if positives[corners].any():
            found = localisation(explanation.scores, positives[corners])
            what = (explanation.model, explanation.method, explanation.target)
            scores.append(MapScore(slide.slide_id, slide.patient_id, *what, held_out, found))
    return scores


def _mean(values: np.ndarray) -> float:
    """Mean of those that are numbers; NaN where none is."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")
