"""``wsi predict``: every slide with a bag, labelled or not, by every ensemble; and every patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config import PredictConfig
from ..engine import Engine, Job
from ..files import Provenance, content_key, discard, is_current, made_path, read_key, write_made_text, write_text
from ..project import Project
from ..train.table import read_table, table
from ..types import SlideRow
from .members import card, ensembles, judges
from .patients import Patient, hear_joint, join_patients
from .verdict import cells, columns, verdict, votes
from .voices import Jury, hear, voices_path, voices_table, who_cells, who_columns, whole_bag

Groups = Mapping[str, Sequence[Path]]
_BEFORE = ("tile", "embed", "predict")


def run(project: Project, engine: Engine) -> None:
    """Predict what is not current, one small table a slide; then the tables of slides and of patients join them.

    Raises ``ArtifactError`` where there is no model.
    """
    slides = engine.ready("predict", project.slides, project.folder.bag, "embed")
    groups = ensembles(project)
    device = project.config.predict.device
    engine.run("predict", [_job(project, groups, slide) for slide in slides], device)
    # What --only leaves out keeps its rows, as long as they are current; a slide that failed loses its own.
    failed = {failure.slide_id for failure in engine.failures if failure.stage in _BEFORE}
    kept = [s for s in project.cohort if project.folder.bag(s.slide_id).exists() and s.slide_id not in failed]
    jobs = [(slide, _job(project, groups, slide)) for slide in kept]
    done = {slide: job for slide, job in jobs if is_current(job.output, job.key)}
    if not done:
        discard(project.folder.predictions)
        discard(project.folder.patients)
        return
    joint = _joint_jobs(project, groups, list(done))
    engine.run("predict", list(joint.values()), device)
    engine.run("predict", [_slides_job(project, list(done.values())), _patients_job(project, groups, done, joint)])


def predict_slide(
    slide: SlideRow, bag: Path, juries: Sequence[Jury], section: PredictConfig, output: Path, key: str
) -> int:
    """Write one row a jury, and beside them every member's logits; returns how many patches were judged.

    Raises ``ArtifactError`` where the bag is not of the kind that a model was trained on, ``SlideError`` where it is
    empty or holds features that are no numbers.
    """
    whole = whole_bag(bag)
    heard = hear(juries, [whole], section)
    rows: list[list[object]] = []
    header: list[str] = []
    for jury, logits in zip(juries, heard, strict=True):
        cards = [card(folder) for folder in jury.members]
        said = verdict(cards, votes(cards, *logits), section)
        header = ["slide_id", *who_columns(said.task), *columns(said.task, said.classes)]
        rows.append([slide.slide_id, *who_cells(slide, slide.label or "", jury), *cells(said, section.abstain)])
    made_path(output).unlink(missing_ok=True)  # killed below, the slide is not current
    write_text(voices_path(output), voices_table(juries, heard))
    write_made_text(output, table(header, rows), Provenance.of(key, "predict"))
    return len(whole.grid)


def join_slides(parts: Sequence[Path], splits: Sequence[str], output: Path, key: str) -> int:
    """Write the slides' tables as one, in the manifest's order, each with its split. Returns its rows."""
    tables = [read_table(path) for path in parts]
    at = tables[0][0].index("model")
    rows = [[*row[:at], split, *row[at:]] for (_, lines), split in zip(tables, splits, strict=True) for row in lines]
    header = [*tables[0][0][:at], "split", *tables[0][0][at:]]
    write_made_text(output, table(header, rows), Provenance.of(key, "predict"))
    return len(rows)


def _job(project: Project, groups: Groups, slide: SlideRow) -> Job:
    output = project.folder.predictions.parent / "slides" / f"{slide.slide_id}.csv"
    juries, bag, section = _juries(project, groups, slide), project.folder.bag(slide.slide_id), project.config.predict
    key = content_key(
        stage="predict",
        config=_result(section),
        slide=[slide.slide_id, slide.patient_id, slide.label, slide.time, slide.event],
        bag=read_key(bag),
        juries=_identities(juries),
    )
    return Job(slide.slide_id, output, key, predict_slide, (slide, bag, juries, section, output, key))


def _joint_jobs(project: Project, groups: Groups, slides: Sequence[SlideRow]) -> dict[str, Job]:
    """patient_id -> the job of its joint bag, where models were trained on such and there is more than one slide."""
    if all(card(folders[0]).bag == "slide" for folders in groups.values()):
        return {}
    section, jobs = project.config.predict, {}
    for patient_id, own in _by_patient(slides).items():
        if len(own) > 1:
            output = project.folder.predictions.parent / "joint" / f"{own[0].slide_id}.csv"
            juries, bags = _juries(project, groups, own[0]), [project.folder.bag(s.slide_id) for s in own]
            key = content_key(
                stage="predict",
                part="joint",
                config=_result(section),
                bags=[read_key(bag) for bag in bags],
                juries=_identities(juries),
            )
            jobs[patient_id] = Job(own[0].slide_id, output, key, hear_joint, (juries, bags, section, output, key))
    return jobs


def _slides_job(project: Project, jobs: Sequence[Job]) -> Job:
    output = project.folder.predictions
    splits = {slide.slide_id: slide.split or "" for slide in project.cohort}
    of_jobs = [splits[job.name] for job in jobs]
    key = content_key(stage="predict", part="cohort", slides=[(job.name, job.key) for job in jobs], splits=of_jobs)
    return Job("cohort", output, key, join_slides, ([job.output for job in jobs], of_jobs, output, key), slide=False)


def _patients_job(project: Project, groups: Groups, done: Mapping[SlideRow, Job], joint: Mapping[str, Job]) -> Job:
    output, section = project.folder.patients, project.config.predict
    patients = []
    for patient_id, own in _by_patient(list(done)).items():
        voices = tuple(voices_path(done[slide].output) for slide in own)
        together = joint[patient_id].output if patient_id in joint else None
        patients.append(Patient(tuple(own), _juries(project, groups, own[0]), together, voices))
    key = content_key(
        stage="predict",
        part="patients",
        slides=[(slide.slide_id, job.key) for slide, job in done.items()],
        joint=[job.key for job in joint.values()],
    )
    return Job("patients", output, key, join_patients, (patients, section, output, key), slide=False)


def _juries(project: Project, groups: Groups, slide: SlideRow) -> tuple[Jury, ...]:
    own = project.slides_of(slide.patient_id)
    return tuple(Jury(model, *judges(members, slide.patient_id, own)) for model, members in groups.items())


def _by_patient(slides: Sequence[SlideRow]) -> dict[str, list[SlideRow]]:
    found: dict[str, list[SlideRow]] = {}
    for slide in slides:
        found.setdefault(slide.patient_id, []).append(slide)
    return found


def _result(section: PredictConfig) -> dict[str, object]:
    """What of the section decides the numbers. The model counts by its weights, wherever its folder lies."""
    return {name: value for name, value in section.for_key().items() if name != "model"}


def _identities(juries: Sequence[Jury]) -> list[list[object]]:
    return [[jury.model, jury.held_out, [_identity(folder) for folder in jury.members]] for jury in juries]


def _identity(folder: Path) -> list[object]:
    found = card(folder)
    numbers = (found.threshold, found.scale, found.temperature, found.calibration)
    return [found.weights_sha256, found.model, found.options, found.classes, found.task, found.bag, *numbers]
