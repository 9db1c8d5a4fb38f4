"""What a model has seen: features of patches of its training slides, as a sample that a new patch is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...aggregate.inference import cpu_threads
from ...artifacts import Provenance, atomic_path, content_key, provenance_path, read_key, write_provenance
from ...engine import Job
from ...predict.ensembles import card
from ...project import Project
from ...rng import generator_for
from ...store import read_features
from ...types import Int64
from .map_uncertainty import Reference, reference_of

PATCHES = 4096  # of all training slides together; each gives as many


def reference_jobs(project: Project, members: Iterable[Path]) -> dict[Path, Job]:
    """Member -> the job that samples the slides it was trained on; members of one fold share it.

    Without those whose training slides are not in this run folder, as of a model from elsewhere.
    """
    seen = {member: tuple(card(member).trained.get("seen_slides", ())) for member in sorted(members)}
    jobs = {slides: job for slides in set(seen.values()) if (job := _job(project, slides))}
    return {member: jobs[slides] for member, slides in seen.items() if slides in jobs}


def _job(project: Project, slides: Sequence[str]) -> Job | None:
    bags = [path for path in map(project.folder.bag, slides) if path.exists()]
    if not slides or len(bags) < len(slides):
        return None
    key = content_key(
        stage="explain", part="reference", slides=slides, bags=[read_key(path) for path in bags], n=PATCHES
    )
    output = project.folder.reference(content_key(slides=slides)[:16])
    name, provenance = f"reference {output.stem}", Provenance.of(key, "explain")
    return Job(name, output, provenance, write_reference, (bags,), slide=False, on_device=False)


def write_reference(bags: Sequence[Path], *, output: Path, provenance: Provenance) -> int:
    """Write the reference, the same for the same slides; returns R. Rows: mean, scale, then what is known."""
    most = -(-PATCHES // len(bags))
    sample = np.concatenate([read_features(path, partial(_some, most, path.stem)) for path in bags])
    with cpu_threads(1):
        reference = reference_of(torch.from_numpy(sample.astype(np.float32)))
    provenance_path(output).unlink(missing_ok=True)  # killed below, the reference is not current
    with atomic_path(output) as beside, beside.open("wb") as file:
        np.save(file, torch.vstack(reference).numpy(), allow_pickle=False)
    write_provenance(output, provenance)
    return len(sample)


def read_reference(path: Path) -> Reference:
    """What ``write_reference`` wrote."""
    rows = torch.from_numpy(np.load(path, allow_pickle=False))
    return Reference(rows[0], rows[1], rows[2:])


def _some(most: int, slide_id: str, patches: int) -> Int64:
    """``most`` rows of a bag, ascending; all where it has no more."""
    rows = generator_for("reference", slide_id).choice(patches, min(most, patches), replace=False)
    return np.sort(rows).astype(np.int64)
