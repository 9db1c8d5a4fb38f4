"""Which explanations a slide has: the files that maps, QuPath tiles and the report are made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..csvtable import read_csv
from ..project import AUTO, MethodSelection, Project, read_selection


class Source(NamedTuple):
    """One file of ``explain/``; ``model`` is the label of the model."""

    model: str
    method: str
    path: Path
    selected: bool  # by measurement


def model_labels(project: Project) -> list[str]:
    """The models that are shown, in order: the configured ones, or with ``predict.model`` those that judged.

    Folders of ``explain/`` that an earlier model left behind are not among them.
    """
    if project.config.predict.model is None:
        return [choice.label for choice in project.config.aggregate.models]
    explained = (project.folder.root / "explain").glob("[!.]*")
    folders = sorted(p.name for p in explained if p.is_dir())
    if not project.folder.predictions.exists():
        return folders
    header, rows = read_csv(project.folder.predictions)
    judged = {row[header.index("model")] for row in rows}
    return [name for name in folders if name in judged]


def method_choices(project: Project) -> dict[str, MethodSelection]:
    """Model label -> the method that was picked for it; empty where the config asks for no choice."""
    if AUTO not in project.config.explain.methods:
        return {}
    found = {model: read_selection(project.folder.selection(model)) for model in model_labels(project)}
    return {model: choice for model, choice in found.items() if choice}


def source_finder(project: Project) -> Callable[[str], list[Source]]:
    """A function from slide_id to its explanation files: models, then methods and maps, in the config's order."""
    maps = project.config.explain.summary_maps
    picked = {(model, choice.method) for model, choice in method_choices(project).items()}
    wanted = [(model, method) for model in model_labels(project) for method in (*project.methods(model), *maps)]

    def find(slide_id: str) -> list[Source]:
        sources = [Source(*pair, project.folder.explanation(*pair, slide_id), pair in picked) for pair in wanted]
        return [source for source in sources if source.path.exists()]

    return find
