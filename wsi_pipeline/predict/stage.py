"""``wsi predict``: every slide with a bag, labelled or not, by every ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..embed.device import pick_device
from ..engine import Engine, Job
from ..errors import SlideError
from ..files import Provenance, content_key, discard, is_current, read_key, write_made_text
from ..project import Project
from ..store import read_bag
from ..train.inference import cpu_threads, fault
from ..train.table import number, read_table, table
from ..types import SlideRow
from . import weights_id
from .members import card, ensembles, judges, load_members, member_outputs, verdict

_WHO = ("slide_id", "patient_id", "label", "split")
_COLUMNS = (*_WHO, "model", "members", "weights", "held_out", "threshold", "predicted")


@dataclass(frozen=True)
class Jury:
    """Who judges one slide in the name of one model."""

    model: str  # label
    members: tuple[Path, ...]
    held_out: bool  # whether none of them has seen the patient


def run(project: Project, engine: Engine) -> None:
    """Predict what is not current, one small table a slide; then ``predict/predictions.csv`` joins them.

    Raises ``ArtifactError`` where there is no model.
    """
    slides = engine.ready("predict", project.slides, project.folder.bag, "embed")
    groups = ensembles(project)
    engine.run("predict", [_job(project, groups, slide) for slide in slides])
    output = project.folder.predictions
    # What --only leaves out keeps its rows, as long as they are current; a slide that failed loses its own.
    failed = {failure.slide_id for failure in engine.failures if failure.stage in ("tile", "embed", "predict")}
    kept = [s for s in project.cohort if project.folder.bag(s.slide_id).exists() and s.slide_id not in failed]
    done = [job for job in (_job(project, groups, s) for s in kept) if is_current(job.output, job.key)]
    if not done:
        discard(output)
        return
    key = content_key(stage="predict", part="cohort", slides=[(job.name, job.key) for job in done])
    engine.run("predict", [Job("cohort", output, key, join_slides, ([job.output for job in done], output, key))])


def predict_slide(
    slide: SlideRow, bag_path: Path, juries: Sequence[Jury], device_name: str, output: Path, key: str
) -> int:
    """Write one row a jury; returns how many patches were judged. One CPU thread: equal bytes on any machine's share.

    Raises ``ArtifactError`` where the bag is not of the kind that a model was trained on, ``SlideError`` where it is
    empty or holds features that are no numbers.
    """
    device = str(pick_device(device_name))
    bag = read_bag(bag_path)
    if reason := fault(bag):
        raise SlideError(f"the bag {bag_path} {reason}")
    rows: list[list[object]] = []
    classes: tuple[str, ...] = ()
    with cpu_threads(1):
        for jury in juries:
            members = load_members(jury.members, device)
            said = verdict(members, member_outputs(members, bag, device))
            classes = members[0][1].classes
            who = [slide.slide_id, slide.patient_id, slide.label or "", slide.split or ""]
            weights = weights_id(c.weights_sha256 for _, c in members)
            how = [jury.model, len(members), weights, str(jury.held_out).lower(), number(said.threshold)]
            rows.append([*who, *how, classes[said.predicted], *map(number, said.probabilities)])
    text = table([*_COLUMNS, *(f"prob_{c}" for c in classes)], rows)
    write_made_text(output, text, Provenance.of(key, "predict"))
    return len(bag.grid)


def join_slides(parts: Sequence[Path], output: Path, key: str) -> int:
    """Write the slides' tables as one, in the manifest's order. Returns its rows."""
    tables = [read_table(path) for path in parts]
    rows = [row for _, lines in tables for row in lines]
    write_made_text(output, table(tables[0][0], rows), Provenance.of(key, "predict"))
    return len(rows)


def _job(project: Project, groups: Mapping[str, Sequence[Path]], slide: SlideRow) -> Job:
    output = project.folder.predictions.parent / "slides" / f"{slide.slide_id}.csv"
    own = project.slides_of(slide.patient_id)
    juries = [Jury(model, *judges(members, slide.patient_id, own)) for model, members in groups.items()]
    bag, device = project.folder.bag(slide.slide_id), project.config.predict.device
    key = content_key(
        stage="predict",
        device=device,
        slide=[slide.slide_id, slide.patient_id, slide.label, slide.split],
        bag=read_key(bag),
        juries=[[jury.model, jury.held_out, [_identity(folder) for folder in jury.members]] for jury in juries],
    )
    return Job(slide.slide_id, output, key, predict_slide, (slide, bag, juries, device, output, key))


def _identity(folder: Path) -> list[object]:
    found = card(folder)
    return [found.weights_sha256, found.model, found.options, found.classes, found.threshold]
