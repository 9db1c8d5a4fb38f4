"""A run folder for people and notebooks: its slides, what each stage left of them, its tables. Without torch.

Only ``model`` and ``model_folders`` import torch. A run folder may be moved: the manifest is looked for where
``config.yaml`` names it, then at the same place relative to the run folder; the slides, where the manifest names them.
What is not found costs pictures, not numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from .api.frames import read_frame
from .api.slide_results import SlideResults
from .artifacts import read_key
from .config import Config, load_config
from .engine import Failure
from .errors import ArtifactError, UnknownNameError
from .pipeline import EXPLANATIONS, STAGES, read_failures, run_stages, stages_of
from .project import Project, RunFolder, open_project, read_manifest
from .types import SlideRow

if TYPE_CHECKING:
    from pandas import DataFrame

    from .api.trained_model import TrainedModel

_CONFIG = "config.yaml"
_MOST_LISTED = 20  # slides in a repr


class Run:
    """A run folder, read on demand: nothing is kept but the manifest, so a run that goes on can be watched.

    Parameters
    ----------
    path : str or os.PathLike
        The run folder (``out:`` of the config).
    manifest : str or os.PathLike, optional
        The slides' manifest, if it is no longer where the config names it.

    Raises
    ------
    ArtifactError
        The folder does not exist or is not a run folder.

    Examples
    --------
    >>> import wsi_pipeline as wsi
    >>> run = wsi.Run("demo/run")  # doctest: +SKIP
    >>> run.slides  # doctest: +SKIP
    ('slide_01', 'slide_02', 'slide_03')
    >>> run["slide_03"].explanation("abmil", "contribution").plot()  # doctest: +SKIP
    >>> run.predictions().groupby("model").size()  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str], *, manifest: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.folder = RunFolder(self.path)
        self._given = None if manifest is None else Path(manifest)
        if not self.path.is_dir():
            raise ArtifactError(f"{self.path} is not a folder; give the run folder, which is out: in the config")
        if not any((self.path / name).exists() for name in (_CONFIG, *STAGES)):
            raise ArtifactError(
                f"{self.path} is not a run folder: it holds neither {_CONFIG} nor the folder of a stage; "
                f"give the folder that out: names in the config"
            )

    @cached_property
    def config(self) -> Config:
        """The resolved config, with ``out`` and ``slides`` where they are now. Raises ``ConfigError``."""
        config = load_config(self.path / _CONFIG)
        return config.model_copy(update={"out": self.path.resolve(), "slides": self._manifest or config.slides})

    @cached_property
    def rows(self) -> Mapping[str, SlideRow]:
        """slide_id -> line of the manifest; empty where the manifest is not found. Raises ``ConfigError``."""
        return {row.slide_id: row for row in read_manifest(self._manifest)} if self._manifest else {}

    @property
    def slides(self) -> tuple[str, ...]:
        """The slide ids, in the manifest's order; without a manifest those that have a grid or a bag, sorted."""
        if self.rows:
            return tuple(self.rows)
        found = (path for stage in ("tile", "embed") for path in (self.path / stage).glob("*.h5"))
        return tuple(sorted({path.stem for path in found}))

    @property
    def models(self) -> tuple[str, ...]:
        """Labels of the models that were trained here, or applied, sorted."""
        folders = [*(self.path / "train").glob("[!.]*"), *(self.path / "explain").glob("[!.]*")]
        return tuple(sorted({path.name for path in folders if path.is_dir()}))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The lines of failures.csv: ``slide_id``, ``stage``, ``error``, ``message``."""
        return tuple(read_failures(self.folder.failures))

    def predictions(self) -> DataFrame:
        """Predictions of slides, one row per slide and model. Raises ``ArtifactError`` before ``wsi predict``."""
        return read_frame(self.folder.predictions, "predict")

    def patients(self) -> DataFrame:
        """Predictions of patients, one row per patient and model. Raises ``ArtifactError`` before ``wsi predict``."""
        return read_frame(self.folder.patients, "predict")

    def metrics(self, table: str = "metrics") -> DataFrame:
        """A table of ``evaluate/``.

        Parameters
        ----------
        table : str
            ``metrics`` (slides, with 95 % intervals), ``metrics_patients``, ``maps`` (maps against annotations),
            ``seeds``, ``froc`` or ``explanations`` (patch flipping, localisation, cost of each method).

        Raises
        ------
        ArtifactError
            The table does not exist; the message names those that do.
        """
        path = self.folder.evaluate / f"{table}.csv"
        known = sorted(found.stem for found in self.folder.evaluate.glob("*.csv"))
        if known and table not in known:
            raise ArtifactError(f"{path} does not exist; tables of this run: {', '.join(known)}")
        read_key(self.folder.evaluate / "report.json")  # refuses the tables of another schema
        return read_frame(path, "evaluate")

    def model(self, label: str, *, device: str = "auto") -> TrainedModel:
        """Load all folds of a model as one ensemble. For a slide of this run, see ``run[slide_id].model``.

        Raises
        ------
        UnknownNameError
            There is no such model.
        ArtifactError
            Its files are missing or damaged.
        """
        from .api.trained_model import named_model

        return named_model(label, self.model_folders(label), device)

    def model_folders(self, label: str) -> list[Path]:
        """Folders of the folds of a model: those trained here, or those of ``predict.model``."""
        from .predict.ensembles import find_ensembles

        rows = tuple(self.rows.values())
        found = find_ensembles(Project(self.config, rows, rows))
        if label not in found:
            raise UnknownNameError(f"{self.path} has no model {label!r}; it has: {', '.join(found)}")
        return found[label]

    def __getitem__(self, slide_id: str) -> SlideResults:
        if slide_id not in self.slides:
            close = get_close_matches(str(slide_id), self.slides, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {len(self)}, see run.slides"
            raise UnknownNameError(f"{self.path} has no slide {slide_id!r}; {hint}")
        return SlideResults(self, slide_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.slides)

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self.slides

    def __len__(self) -> int:
        return len(self.slides)

    def __repr__(self) -> str:
        return f"<run {self.path.name}: {len(self)} slides; {', '.join(self.models) or 'no model yet'}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("slide", "label", "patches", "features", "maps", "heatmap"))
        lines = "".join(self[slide_id].html_row() for slide_id in self.slides[:_MOST_LISTED])
        more = len(self) - _MOST_LISTED
        rest = f"<tr><td colspan='6'>and {more} more</td></tr>" if more > 0 else ""
        caption = f"{escape(repr(self)[1:-1])}; {len(self.failures)} failures"
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{lines}{rest}</table>"

    @cached_property
    def _manifest(self) -> Path | None:
        """The manifest as given, as the config names it, or as it lies relative to the run folder; None: not found."""
        if self._given is not None:
            return self._given
        places = [self.path / "slides.csv"]
        try:
            settings = yaml.safe_load((self.path / _CONFIG).read_text(encoding="utf-8"))
            slides, out = Path(settings["slides"]), Path(settings["out"])
            places = [slides, self.path / os.path.relpath(slides, out), *places]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            pass  # ``config`` gives the reason to those who need it
        return next((path.resolve() for path in places if path.is_file()), None)


def run_pipeline(
    config: Config | str | os.PathLike[str],
    *,
    stages: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> Run:
    """Run stages of the pipeline; work that is done and current is not done again.

    Parameters
    ----------
    config : Config, str or os.PathLike
        A config, or the path of its YAML file.
    stages : sequence of str, optional
        Some of ``tile``, ``embed``, ``train``, ``predict``, ``explain``, ``heatmap``, ``evaluate``, ``explanations``
        and ``view``; default: those of ``wsi run``.
    only : sequence of str, optional
        Slide ids to work on; default: the whole manifest.

    Returns
    -------
    Run
        The run folder. Slides that failed are in its ``failures``; the others are done.

    Raises
    ------
    UnknownNameError
        There is no such stage.
    ConfigError
        The config, the manifest or a plug-in's name cannot be used; nothing has been computed.
    WsiError
        Something that the user must fix: no space left, a device that does not exist, …
    """
    loaded = config if isinstance(config, Config) else load_config(config)
    wanted = stages_of(loaded) if stages is None else (stages,) if isinstance(stages, str) else tuple(stages)
    known = (*STAGES, EXPLANATIONS)
    for name in wanted:
        if name not in known:
            raise UnknownNameError(f"there is no stage {name!r}; known: {', '.join(known)}")
    chosen = (only,) if isinstance(only, str) else tuple(only or ())
    run_stages(open_project(loaded, chosen), wanted)
    return Run(loaded.out)
