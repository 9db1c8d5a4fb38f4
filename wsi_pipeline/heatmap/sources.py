"""The explanation files of a slide, from which heatmaps, QuPath tiles and the report are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..csvtable import read_csv
from ..project import AUTO, MethodSelection, Project, read_selection


class Source(NamedTuple):
    """One file of ``explain/``. ``model`` is the label of the model."""

    model: str
    method: str
    path: Path
    selected: bool  # whether the method was selected by measurement


def model_labels(project: Project) -> list[str]:
    """Labels of the models that are shown, in order: the configured ones, or with ``predict.model`` those predicted.

    Folders of ``explain/`` that remain from an earlier model are not among them.
    """
    if project.config.predict.model is None:
        return [choice.label for choice in project.config.aggregate.models]
    explained = (project.folder.root / "explain").glob("[!.]*")
    folders = sorted(p.name for p in explained if p.is_dir())
    if not project.folder.predictions.exists():
        return folders
    header, rows = read_csv(project.folder.predictions)
    predicted = {row[header.index("model")] for row in rows}
    return [name for name in folders if name in predicted]


def method_selections(project: Project) -> dict[str, MethodSelection]:
    """Label of the model -> the method that was selected for it; empty unless ``explain.methods`` contains ``auto``."""
    if AUTO not in project.config.explain.methods:
        return {}
    found = {model: read_selection(project.folder.selection(model)) for model in model_labels(project)}
    return {model: selection for model, selection in found.items() if selection}


def source_finder(project: Project) -> Callable[[str], list[Source]]:
    """A function from slide_id to its existing explanation files: by model, then methods and maps in config order."""
    maps = project.config.explain.summary_maps
    selected = {(model, selection.method) for model, selection in method_selections(project).items()}
    wanted = [(model, method) for model in model_labels(project) for method in (*project.methods(model), *maps)]

    def find(slide_id: str) -> list[Source]:
        sources = [Source(*pair, project.folder.explanation(*pair, slide_id), pair in selected) for pair in wanted]
        return [source for source in sources if source.path.exists()]

    return find
