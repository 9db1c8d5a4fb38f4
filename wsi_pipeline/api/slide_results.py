"""One slide of a run folder: what each stage left of it. Only ``model`` imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from ..config import Config
from ..errors import ArtifactError, SlideError, UnknownNameError, WsiError
from ..project import RunFolder
from ..read import open_slide
from ..read.annotations import Annotation, read_annotation
from ..store import read_bag, read_explanations, read_grid
from ..tile.quality import read_quality_picture
from ..types import FeatureBag, PatchGrid, SlideRow, TissueMask, UInt8
from .maps import ExplanationMap, Heatmap, read_heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..read.slide import CheckedSlide
    from .trained_model import TrainedModel


class RunOfSlide(Protocol):
    """What a slide needs of its run."""

    path: Path
    folder: RunFolder

    @property
    def config(self) -> Config: ...

    @property
    def rows(self) -> Mapping[str, SlideRow]: ...

    def model_folders(self, label: str) -> list[Path]: ...


class SlideResults:
    """One slide of a run folder; each attribute reads its file. ``run["slide_03"]`` makes one."""

    def __init__(self, run: RunOfSlide, slide_id: str) -> None:
        self.slide_id = slide_id
        self._run = run

    @property
    def row(self) -> SlideRow | None:
        """Its line of the manifest; None where the manifest is not found."""
        return self._run.rows.get(self.slide_id)

    @property
    def grid(self) -> PatchGrid:
        """Its patches. Raises ``ArtifactError`` before ``wsi tile``."""
        return read_grid(self._run.folder.grid(self.slide_id))[0]

    @property
    def tissue(self) -> TissueMask:
        """Its tissue mask. Raises ``ArtifactError`` before ``wsi tile``."""
        return read_grid(self._run.folder.grid(self.slide_id))[1]

    @property
    def bag(self) -> FeatureBag:
        """Its features. Raises ``ArtifactError`` before ``wsi embed``."""
        return read_bag(self._run.folder.bag(self.slide_id))

    @property
    def explanations(self) -> tuple[tuple[str, str], ...]:
        """(model, method) of each explanation there is, sorted."""
        folders = (self._run.path / "explain").glob("[!.]*/[!.]*")
        return tuple(sorted((p.parent.name, p.name) for p in folders if (p / f"{self.slide_id}.h5").exists()))

    def explanation(self, model: str, method: str, target: str | None = None) -> ExplanationMap:
        """Read one explanation.

        Parameters
        ----------
        model, method : str
            Label of the model and name of the method, or of a summary map such as ``consensus``.
        target : str, optional
            The class; needed only where the file holds several.

        Raises
        ------
        UnknownNameError
            There is no such explanation or class; the message lists those there are.
        ArtifactError
            The file is damaged.
        """
        path = self._run.folder.explanation(model, method, self.slide_id)
        if not path.exists():
            known = ", ".join(f"{a}/{b}" for a, b in self.explanations) or "none; run `wsi explain`"
            raise UnknownNameError(f"{self.slide_id} has no explanation {model}/{method}; it has: {known}")
        found = read_explanations(path)
        wanted = [one for one in found if target in (None, one.target)]
        if len(wanted) != 1:
            what = "several classes" if target is None else f"no class {target!r}"
            raise UnknownNameError(f"{path} has {what}; give target, one of: {', '.join(o.target for o in found)}")
        return ExplanationMap(**vars(wanted[0]), background=self._background)

    def heatmap(self) -> Heatmap:
        """Open its heatmap pyramid. Raises ``ArtifactError`` before ``wsi heatmap``."""
        found = read_heatmap(self._run.folder.heatmap(self.slide_id))
        return Heatmap(**{**vars(found), "background": self._background})

    def plot(self, model: str, method: str, target: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw one explanation over the slide; see ``ExplanationMap.plot`` for more options."""
        return self.explanation(model, method, target).plot(ax)

    def thumbnail(self, max_px: int = 1024) -> UInt8:
        """Read a picture of the whole slide, (h, w, 3) RGB, at most ``max_px`` pixels on the longer side.

        Where the slide cannot be opened, it is the picture of ``tile/quality/``, with tissue and patches marked.

        Raises
        ------
        SlideError
            Neither the slide nor that picture is there.
        """
        try:
            with self.slide() as slide:
                return slide.thumbnail(max_px)
        except WsiError as error:
            path = self._run.folder.quality(self.slide_id)
            try:
                picture = Image.fromarray(read_quality_picture(path))
            except OSError:
                raise SlideError(f"{self.slide_id} has no picture: {error}; {path} does not exist either") from error
        picture.thumbnail((max_px, max_px))
        return np.asarray(picture)

    def slide(self) -> CheckedSlide:
        """Open the slide with the run's settings. Close it, or use it as a context manager.

        Raises
        ------
        SlideError
            The slide is not where the manifest names it, the manifest is not found, or the file cannot be opened.
        """
        if self.row is None:
            raise SlideError(
                f"{self.slide_id} cannot be opened: the manifest of {self._run.path} is not found; "
                f"give it as Run({str(self._run.path)!r}, manifest=…)"
            )
        return open_slide(self.row.path, self._run.config.read, self.row.mpp)

    @property
    def annotation(self) -> Annotation | None:
        """What a person drew on the slide, in level-0 pixels; None where the manifest names no file.

        Raises ``ConfigError`` where the file is not there or cannot be used.
        """
        if self.row is None or self.row.annotation is None:
            return None
        return read_annotation(self.row.annotation, self.grid.bounds_px0)

    def model(self, label: str, *, device: str = "auto") -> TrainedModel:
        """Load the folds of a model that the run's numbers of this slide come from.

        These are the folds that were not trained on the patient; all of them, where each was.

        Raises
        ------
        UnknownNameError
            The run has no such model.
        ArtifactError
            Its files are missing, or the manifest is not found.
        """
        from ..predict.ensembles import held_out_members
        from .trained_model import named_model

        if self.row is None:
            raise ArtifactError(f"the patient of {self.slide_id} is not known: give Run(…, manifest=…)")
        patient = self.row.patient_id
        own = [row.slide_id for row in self._run.rows.values() if row.patient_id == patient]
        return named_model(label, held_out_members(self._run.model_folders(label), patient, own)[0], device)

    def _background(self) -> UInt8:
        """What a map is drawn over: the thumbnail, else the tissue mask."""
        from .map_plot import picture_of_tissue

        try:
            return self.thumbnail()
        except WsiError:
            return picture_of_tissue(self.tissue)

    def __repr__(self) -> str:
        return f"<slide {self.slide_id} of {self._run.path.name}: {len(self.explanations)} explanations>"

    def _repr_html_(self) -> str:
        maps = "".join(f"<li>{escape(model)} / {escape(method)}</li>" for model, method in self.explanations)
        return f"<b>{escape(self.slide_id)}</b> of {escape(self._run.path.name)}<ul>{maps}</ul>"

    def html_row(self) -> str:
        """Its line in the run's table."""
        folder, row = self._run.folder, self.row
        files = folder.grid(self.slide_id), folder.bag(self.slide_id), folder.heatmap(self.slide_id)
        grid, bag, heatmap = ("✓" if path.exists() else "" for path in files)
        label = escape(row.label or "") if row else ""
        cells = (escape(self.slide_id), label, grid, bag, str(len(self.explanations) or ""), heatmap)
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
