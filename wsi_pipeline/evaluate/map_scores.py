"""Localisation of every map of every slide, and the means of each channel."""

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
from .localisation import Localisation, annotated_fractions, localisation, positive_patches

MEANS = ("auprc", "base_rate", "lift", "auroc")


@dataclass(frozen=True)
class SlideMaps:
    """The files with the maps of one slide, and its annotation."""

    slide_id: str
    patient_id: str
    annotation: Path | None
    maps: tuple[tuple[Path, bool], ...]  # explanation files, each with whether the patient is held out from its model


@dataclass(frozen=True)
class MapScore:
    """Localisation of one channel of one slide."""

    slide_id: str
    patient_id: str
    model: str
    method: str
    target: str
    held_out: bool
    found: Localisation

    @property
    def channel(self) -> tuple[str, str, str]:
        """Model, method and target."""
        return self.model, self.method, self.target


@dataclass
class MapScores:
    """The maps that could be measured, and the slides that could not."""

    scores: list[MapScore] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> number of slides
    notes: list[str] = field(default_factory=list)


def score_maps(slides: Iterable[SlideMaps], section: EvaluateConfig) -> MapScores:
    """Compare the maps of all slides with their annotations (``section.tumour_classes`` of them).

    Slides without a map, an annotation or an annotated patch are counted and left out.
    """
    result = MapScores()
    for slide in slides:
        if slide.annotation is None or not slide.maps:
            result.left_out["no map" if slide.annotation else "no annotation"] += 1
            continue
        explanations = [(e, held_out) for path, held_out in slide.maps for e in read_explanations(path)]
        try:
            annotation = read_annotation(slide.annotation, explanations[0][0].grid.bounds_px0)
        except ConfigError as error:  # an input that cannot be read; the other slides are still measured
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
    """The means of each channel over its held-out slides, with intervals over patients.

    Returns
    -------
    list of (MapScore, int, dict)
        Per channel one of its maps, the number of slides, and ``MEANS``.
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
    """The localisation of all maps of one slide; empty where no patch is inside ``area`` (level-0 pixels)."""
    positives: dict[bytes, Bool] = {}  # one entry, since all maps of a slide share a grid, unless some are older
    scores = []
    for explanation, held_out in explanations:
        corners = explanation.grid.xy_px0.tobytes()
        if corners not in positives:
            positives[corners] = positive_patches(annotated_fractions(area, explanation.grid))
        if positives[corners].any():
            found = localisation(explanation.scores, positives[corners])
            channel = (explanation.model, explanation.method, explanation.target)
            scores.append(MapScore(slide.slide_id, slide.patient_id, *channel, held_out, found))
    return scores


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN where all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
