"""``wsi evaluate explanations``: every method's maps measured on the held-out slides, and the methods compared.

One job a slide and model leaves ``evaluate/explanations/<model>/<slide_id>.json``; the cohort's job joins them. Its
torch half is ``explain.measure``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..config import Config, EvaluateConfig, ExplainConfig
from ..engine import Engine, Job
from ..errors import ArtifactError, ConfigError, UnknownNameError
from ..explain import explainers
from ..explain.measure import MethodMeasures, SlideMeasures, measure_slide
from ..explain.stage import misfit, one_of_each_kind
from ..files import Provenance, content_key, digest_or_none, is_current, read_key, write_made_text
from ..predict.members import card, ensembles, judges
from ..project import AUTO, Project
from ..read.annotations import read_annotation
from ..types import Bool, SlideRow
from .explanations_cohort import CSV, MeasuredSlide, join_explanations
from .localisation import annotated_shares, positive_patches
from .overlap import overlap

STAGE = "explanations"


def run(project: Project, engine: Engine) -> None:
    """Measure what is not current. Slides whose every model has seen their patient are left out.

    Raises ``ArtifactError`` where there is no model, or no slide that a model has not seen.
    """
    section = project.config.evaluate
    slides = engine.ready(STAGE, project.slides, project.folder.bag, "embed")
    annotated_first = sorted(slides, key=lambda slide: slide.annotation is None)
    jobs: list[tuple[str, SlideRow, Job]] = []
    for label, folders in explained(ensembles(project), section).items():
        methods = fitting(project.config, folders)
        judged = (
            (slide, *judges(folders, slide.patient_id, project.slides_of(slide.patient_id)))
            for slide in annotated_first
        )
        unseen = [(slide, members) for slide, members, held_out in judged if held_out][: section.explained_slides]
        jobs += [(label, slide, _job(project, slide, label, methods, members)) for slide, members in unseen]
    if not jobs:
        raise ArtifactError("no slide is held out from every member of a model, so no explanation can be measured")
    engine.run(STAGE, [job for _, _, job in jobs], project.config.explain.device)
    found = [
        MeasuredSlide(label, slide.slide_id, slide.patient_id, job.output)
        for label, slide, job in jobs
        if is_current(job.output, job.key)
    ]
    key = content_key(
        stage=STAGE,
        config={"bootstrap": section.bootstrap, "seed": section.seed},
        slides=[[one.model, one.slide_id, one.patient_id, read_key(one.path)] for one in found],
    )
    output = project.folder.evaluate / CSV
    provenance = Provenance.of(key, STAGE, config=section.for_key())
    arguments = (tuple(found), section, output, provenance)
    engine.run(STAGE, [Job("cohort", output, key, join_explanations, arguments, slide=False)])


def explained(groups: Mapping[str, Sequence[Path]], section: EvaluateConfig) -> dict[str, Sequence[Path]]:
    """The ensembles whose explanations are measured. Raises ``UnknownNameError`` for one that is none."""
    for name in section.explained_models or ():
        if name not in groups:
            raise UnknownNameError(f"evaluate.explained_models: there is no model {name!r}; here: {', '.join(groups)}")
    return {name: groups[name] for name in section.explained_models or groups}


def fitting(config: Config, folders: Sequence[Path]) -> list[str]:
    """The methods of the config that fit a model, with what ``auto`` picks from."""
    section = config.explain
    named = [m for name in section.methods for m in (section.candidates if name == AUTO else (name,))]
    kinds = one_of_each_kind(folders)
    built = {name: explainers.build(name, **section.options.get(name, {})) for name in dict.fromkeys(named)}
    return [name for name, explainer in built.items() if not misfit(explainer, kinds)]


def _job(project: Project, slide: SlideRow, label: str, methods: Sequence[str], members: Sequence[Path]) -> Job:
    section, explain = project.config.evaluate, project.config.explain
    bag = project.folder.bag(slide.slide_id)
    output = project.folder.evaluate / STAGE / label / f"{slide.slide_id}.json"
    cards = [card(folder) for folder in members]
    outlined = outlined_class(slide, cards[0].classes)
    facts = {
        "config": {name: getattr(section, name) for name in ("flips", "replace", "perturbations", "seed")},
        "methods": {name: explain.options.get(name, {}) for name in methods},
        "device": explain.device,
        "model": label,
        "members": [[c.weights_sha256, c.model, c.options, c.classes] for c in cards],
        "upstream": read_key(bag),
        "outlined": [outlined, section.tumour_classes, digest_or_none(slide.annotation)] if outlined else None,
    }
    provenance = Provenance.of(content_key(stage=STAGE, **facts), STAGE, **facts)
    annotation = slide.annotation if outlined else None
    arguments = (bag, tuple(members), tuple(methods), explain, section, outlined, annotation, output, provenance)
    return Job(slide.slide_id, output, provenance.key, measure, arguments)


def outlined_class(slide: SlideRow, classes: Sequence[str]) -> str | None:
    """The class that the slide's annotation shows: its label's; without one, the positive of two. None: not known."""
    if slide.annotation is None:
        return None
    if slide.label in classes:
        return slide.label
    return classes[-1] if slide.label is None and len(classes) == 2 else None


def measure(
    bag: Path,
    members: Sequence[Path],
    methods: Sequence[str],
    explain: ExplainConfig,
    section: EvaluateConfig,
    outlined: str | None,
    annotation: Path | None,
    output: Path,
    provenance: Provenance,
) -> int:
    """Write one slide's measures as JSON; returns the number of patches."""
    found = measure_slide(bag, members, methods, explain, section, outlined)
    positive, note = _positive(found, annotation, section)
    said = {
        "slide_id": found.grid.slide_id,
        "patches": len(found.grid),
        "target": found.target,
        "outlined": {"class": outlined, "patches": int(positive.sum())} if positive is not None else None,
        "note": note,
        "methods": {name: _method(one, positive) for name, one in found.methods.items()},
        "spearman": [list(map(_number, row)) for row in found.spearman.tolist()],
    }
    write_made_text(output, json.dumps(said, ensure_ascii=False, allow_nan=False) + "\n", provenance)
    return len(found.grid)


def _positive(found: SlideMeasures, annotation: Path | None, section: EvaluateConfig) -> tuple[Bool | None, str]:
    """The outlined patches (N,), where there are any; else None, and why where that is worth a word."""
    if annotation is None:
        return None, ""
    try:
        area = read_annotation(annotation, found.grid.bounds_px0).area(section.tumour_classes)
    except ConfigError as error:
        return None, str(error)
    positive = positive_patches(annotated_shares(area, found.grid))
    return (positive, "") if positive.any() else (None, "no patch inside the annotation")


def _method(one: MethodMeasures, positive: Bool | None) -> dict[str, object]:
    curves = {
        way: {
            "most": [_number(v) for v in flips.most.outcome.tolist()],
            "least": [_number(v) for v in flips.least.outcome.tolist()],
            "most_contrast": _number(float(flips.most.contrast.mean())),
            "least_contrast": _number(float(flips.least.contrast.mean())),
        }
        for way, flips in one.flips.items()
    }
    cost = None if one.cost is None else {"seconds": one.cost.seconds, "peak_mb": one.cost.peak_bytes / 2**20}
    against: dict[str, object] | None = None
    if positive is not None and one.outlined is not None:
        against = {name: _jsonable(value) for name, value in overlap(one.outlined, positive)._asdict().items()}
    sanity = {"redrawn": _number(one.redrawn), "sensitivity": _number(one.sensitivity)}
    return {"flips": curves, **sanity, "cost": cost, "overlap": against}


def _jsonable(value: float | np.ndarray) -> object:
    return [_number(v) for v in value.tolist()] if isinstance(value, np.ndarray) else _number(value)


def _number(value: float) -> float | None:
    """Eight decimals; null where there is no number."""
    return None if math.isnan(value) else round(value, 8)
