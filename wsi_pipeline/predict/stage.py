"""``wsi predict``: every slide with a bag, labelled or not, by every ensemble; and every patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..artifacts import (
    Provenance,
    content_key,
    discard,
    is_current,
    provenance_path,
    read_key,
    write_text,
    write_text_with_provenance,
)
from ..config import PredictConfig
from ..csvtable import csv_text, read_csv
from ..engine import Failure, Job
from ..project import Project
from ..types import SlideRow
from .ensemble_prediction import cells, columns, combine_members, member_outputs
from .ensembles import card, find_ensembles, held_out_members
from .member_logits import (
    Ensemble,
    case_cells,
    case_columns,
    compute_member_logits,
    member_logits_path,
    member_logits_table,
    whole_bag,
)
from .patients import Patient, compute_joint_logits, join_patients

Groups = Mapping[str, Sequence[Path]]
_BEFORE = ("tile", "embed", "predict")


def jobs(project: Project, slides: Sequence[SlideRow], failures: Sequence[Failure]) -> Iterator[list[Job]]:
    """One small table a slide; then the tables of slides and of patients join them.

    ``failures``: all of this call so far. Raises ``ArtifactError`` where there is no model.
    """
    groups = find_ensembles(project)
    yield [_job(project, groups, slide) for slide in slides]
    # A slide that --only leaves out keeps its rows as long as they are current; one that failed loses them.
    failed = {failure.slide_id for failure in failures if failure.stage in _BEFORE}
    kept = [s for s in project.cohort if project.folder.bag(s.slide_id).exists() and s.slide_id not in failed]
    of_slides = [(slide, _job(project, groups, slide)) for slide in kept]
    done = {slide: job for slide, job in of_slides if is_current(job.output, job.key)}
    if not done:
        discard(project.folder.predictions)
        discard(project.folder.patients)
        return
    joint = _joint_jobs(project, groups, list(done))
    yield list(joint.values())
    yield [_slides_job(project, list(done.values())), _patients_job(project, groups, done, joint)]


def predict_slide(
    slide: SlideRow,
    bag: Path,
    ensembles: Sequence[Ensemble],
    section: PredictConfig,
    *,
    output: Path,
    provenance: Provenance,
) -> int:
    """Write one row per ensemble, and beside it every member's logits; returns the number of patches.

    Raises ``ArtifactError`` where the bag is not of the kind that a model was trained on, ``SlideError`` where it is
    empty or contains features that are not finite.
    """
    whole = whole_bag(bag)
    logits_of_each = compute_member_logits(ensembles, [whole], section)
    rows: list[list[object]] = []
    header: list[str] = []
    for ensemble, logits in zip(ensembles, logits_of_each, strict=True):
        cards = [card(folder) for folder in ensemble.members]
        found = combine_members(cards, member_outputs(cards, *logits), section)
        header = ["slide_id", *case_columns(found.task), *columns(found.task, found.classes)]
        rows.append([slide.slide_id, *case_cells(slide, slide.label or "", ensemble), *cells(found, section.abstain)])
    provenance_path(output).unlink(missing_ok=True)  # killed below, the slide is not current
    write_text(member_logits_path(output), member_logits_table(ensembles, logits_of_each))
    write_text_with_provenance(output, csv_text(header, rows), provenance)
    return len(whole.grid)


def join_slides(parts: Sequence[Path], splits: Sequence[str], *, output: Path, provenance: Provenance) -> int:
    """Write the slides' tables as one, in the manifest's order, with the splits. Returns its row count."""
    tables = [read_csv(path) for path in parts]
    at = tables[0][0].index("model")
    rows = [[*row[:at], split, *row[at:]] for (_, lines), split in zip(tables, splits, strict=True) for row in lines]
    header = [*tables[0][0][:at], "split", *tables[0][0][at:]]
    write_text_with_provenance(output, csv_text(header, rows), provenance)
    return len(rows)


def _job(project: Project, groups: Groups, slide: SlideRow) -> Job:
    output = project.folder.predictions.parent / "slides" / f"{slide.slide_id}.csv"
    ensembles = _ensembles(project, groups, slide)
    bag, section = project.folder.bag(slide.slide_id), project.config.predict
    key = content_key(
        stage="predict",
        config=_result(section),
        slide=[slide.slide_id, slide.patient_id, slide.label, slide.time, slide.event],
        bag=read_key(bag),
        ensembles=_identities(ensembles),
    )
    return Job(slide.slide_id, output, _provenance(key), predict_slide, (slide, bag, ensembles, section))


def _joint_jobs(project: Project, groups: Groups, slides: Sequence[SlideRow]) -> dict[str, Job]:
    """patient_id -> the job of the joint bag, where models were trained on patients and there are several slides."""
    if all(card(folders[0]).bag == "slide" for folders in groups.values()):
        return {}
    section, made = project.config.predict, {}
    for patient_id, own in _by_patient(slides).items():
        if len(own) > 1:
            output = project.folder.predictions.parent / "joint" / f"{own[0].slide_id}.csv"
            ensembles, bags = _ensembles(project, groups, own[0]), [project.folder.bag(s.slide_id) for s in own]
            key = content_key(
                stage="predict",
                part="joint",
                config=_result(section),
                bags=[read_key(bag) for bag in bags],
                ensembles=_identities(ensembles),
            )
            arguments = (ensembles, bags, section)
            made[patient_id] = Job(own[0].slide_id, output, _provenance(key), compute_joint_logits, arguments)
    return made


def _slides_job(project: Project, done: Sequence[Job]) -> Job:
    output = project.folder.predictions
    splits = {slide.slide_id: slide.split or "" for slide in project.cohort}
    of_done = [splits[job.name] for job in done]
    key = content_key(stage="predict", part="cohort", slides=[(job.name, job.key) for job in done], splits=of_done)
    arguments = ([job.output for job in done], of_done)
    return Job("cohort", output, _provenance(key), join_slides, arguments, slide=False, on_device=False)


def _patients_job(project: Project, groups: Groups, done: Mapping[SlideRow, Job], joint: Mapping[str, Job]) -> Job:
    output, section = project.folder.patients, project.config.predict
    patients = []
    for patient_id, own in _by_patient(list(done)).items():
        member_logits = tuple(member_logits_path(done[slide].output) for slide in own)
        together = joint[patient_id].output if patient_id in joint else None
        patients.append(Patient(tuple(own), _ensembles(project, groups, own[0]), together, member_logits))
    key = content_key(
        stage="predict",
        part="patients",
        slides=[(slide.slide_id, job.key) for slide, job in done.items()],
        joint=[job.key for job in joint.values()],
    )
    arguments = (patients, section)
    return Job("patients", output, _provenance(key), join_patients, arguments, slide=False, on_device=False)


def _ensembles(project: Project, groups: Groups, slide: SlideRow) -> tuple[Ensemble, ...]:
    own = project.slides_of(slide.patient_id)
    return tuple(
        Ensemble(model, *held_out_members(members, slide.patient_id, own)) for model, members in groups.items()
    )


def _by_patient(slides: Sequence[SlideRow]) -> dict[str, list[SlideRow]]:
    found: dict[str, list[SlideRow]] = {}
    for slide in slides:
        found.setdefault(slide.patient_id, []).append(slide)
    return found


def _provenance(key: str) -> Provenance:
    return Provenance.of(key, "predict")


def _result(section: PredictConfig) -> dict[str, object]:
    """The part of the section that decides the numbers. The model counts by its weights, not by its path."""
    return {name: value for name, value in section.for_key().items() if name != "model"}


def _identities(ensembles: Sequence[Ensemble]) -> list[list[object]]:
    return [
        [ensemble.model, ensemble.held_out, [_identity(folder) for folder in ensemble.members]]
        for ensemble in ensembles
    ]


def _identity(folder: Path) -> list[object]:
    found = card(folder)
    numbers = (found.threshold, found.scale, found.temperature, found.calibration)
    return [found.weights_sha256, found.model, found.options, found.classes, found.task, found.bag, *numbers]
