"""``wsi evaluate explanations``: measure the maps of every method on the held-out slides, and compare the methods.

One job per slide and model writes ``evaluate/explanations/<model>/<slide_id>.json`` (see ``xai_slide``; the part that
needs torch is ``explain.measures``), and the cohort's job joins them (see ``xai_report``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..artifacts import Provenance, content_key, digest_or_none, is_current, read_key
from ..config import Config, EvaluateConfig
from ..engine import Job
from ..errors import ArtifactError, UnknownNameError
from ..explain.methods import explainers
from ..explain.stage import misfit, one_of_each_kind
from ..predict.ensembles import card, find_ensembles, held_out_members
from ..project import AUTO, Project
from ..types import SlideRow
from .xai_report import CSV, join_explanations
from .xai_slide import measure_explanations, outlined_class
from .xai_statistics import MeasuredSlide

STAGE = "explanations"
# The settings of ``evaluate`` that determine the measures of a slide.
_SLIDE_SETTINGS = ("flipping_points", "replacement", "infidelity_samples", "sensitivity_samples", "seed")


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """One job per slide and model, then the cohort's. Slides of patients that every member was trained on are left out.

    Raises ``ArtifactError`` where there is no model, or no slide is held out from a model.
    """
    section = project.config.evaluate
    annotated_first = sorted(slides, key=lambda slide: slide.annotation is None)
    annotated = any(slide.annotation is not None for slide in slides)
    measuring: list[tuple[str, SlideRow, Job]] = []
    for label, folders in explained_ensembles(find_ensembles(project), section).items():
        methods = fitting_methods(project.config, folders)
        with_members = (
            (slide, *held_out_members(folders, slide.patient_id, project.slides_of(slide.patient_id)))
            for slide in annotated_first
        )
        usable = [(slide, members) for slide, members, held_out in with_members if held_out][: section.explained_slides]
        measuring += [
            (label, slide, _job(project, slide, label, methods, members, annotated)) for slide, members in usable
        ]
    if not measuring:
        raise ArtifactError("no slide is held out from every member of a model, so no explanation can be measured")
    yield [job for _, _, job in measuring]
    found = [
        MeasuredSlide(label, slide.slide_id, slide.patient_id, job.output)
        for label, slide, job in measuring
        if is_current(job.output, job.key)
    ]
    key = content_key(
        stage=STAGE,
        config={"bootstrap": section.bootstrap, "seed": section.seed},
        slides=[[one.model, one.slide_id, one.patient_id, read_key(one.path)] for one in found],
    )
    output = project.folder.evaluate / CSV
    provenance = Provenance.of(key, STAGE, config=section.for_key())
    yield [Job("cohort", output, provenance, join_explanations, (tuple(found), section), slide=False, on_device=False)]


def explained_ensembles(groups: Mapping[str, Sequence[Path]], section: EvaluateConfig) -> dict[str, Sequence[Path]]:
    """The ensembles whose explanations are measured: model -> folders of its members.

    Raises ``UnknownNameError`` where ``evaluate.explained_models`` names a model that does not exist.
    """
    for name in section.explained_models or ():
        if name not in groups:
            raise UnknownNameError(
                f"evaluate.explained_models: there is no model {name!r}; available: {', '.join(groups)}"
            )
    return {name: groups[name] for name in section.explained_models or groups}


def fitting_methods(config: Config, folders: Sequence[Path]) -> list[str]:
    """The configured methods that fit a model, including the candidates of ``auto``."""
    section = config.explain
    named = [m for name in section.methods for m in (section.candidates if name == AUTO else (name,))]
    kinds = one_of_each_kind(folders)
    built = {name: explainers.build(name, **section.options.get(name, {})) for name in dict.fromkeys(named)}
    return [name for name, explainer in built.items() if not misfit(explainer, kinds)]


def _job(
    project: Project, slide: SlideRow, label: str, methods: Sequence[str], members: Sequence[Path], annotated: bool
) -> Job:
    """Measure one slide. ``annotated``: whether any slide of the cohort has an annotation, so that there is a FROC."""
    section, explain = project.config.evaluate, project.config.explain
    bag = project.folder.bag(slide.slide_id)
    output = project.folder.evaluate / STAGE / label / f"{slide.slide_id}.json"
    cards = [card(folder) for folder in members]
    outlined = outlined_class(slide, cards[0].classes, cards[0].task)
    froc = annotated and cards[0].task == "classification" and len(cards[0].classes) == 2
    annotation = [section.tumour_classes, digest_or_none(slide.annotation)]
    facts = {
        "config": {name: getattr(section, name) for name in _SLIDE_SETTINGS},
        "methods": {name: explain.options.get(name, {}) for name in methods},
        "device": explain.device,
        "model": label,
        "members": [[c.weights_sha256, c.model, c.options, c.classes] for c in cards],
        "upstream": read_key(bag),
        "outlined": [outlined, *annotation] if outlined else None,
        "froc": [section.froc_radius_um, slide.label, *annotation] if froc else None,
    }
    provenance = Provenance.of(content_key(stage=STAGE, **facts), STAGE, **facts)
    arguments = (bag, tuple(members), tuple(methods), explain, section, slide, froc)
    return Job(slide.slide_id, output, provenance, measure_explanations, arguments)
