"""The commands that run stages: ``wsi run``, one for each stage, and ``wsi demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import ConfigError
from .shared_options import ConfigPath, Only, Overrides

if TYPE_CHECKING:
    from ..config import Config
    from ..project import Project


def run(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Every stage: tile, embed, train, predict, explain, heatmap, evaluate, view. Finished work is not repeated."""
    from ..pipeline import stages_of

    loaded = _load(config, set_)
    run_and_report(loaded, stages_of(loaded), only)


def tile(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Find tissue and lay the patch grid on it -> tile/"""
    run_and_report(_load(config, set_), ("tile",), only)


def embed(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Encode every patch -> embed/ (HDF5 bags)"""
    run_and_report(_load(config, set_), ("embed",), only)


def train(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Train MIL models, patient-level folds -> train/"""
    run_and_report(_load(config, set_), ("train",), only)


def predict(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file, or none with --model.")] = None,
    set_: Overrides = None,
    only: Only = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a trained model, or of several: an ensemble.")] = None,
    slides: Annotated[
        list[str] | None, typer.Option(help="Slide, folder or quoted pattern, e.g. 'incoming/*.svs'.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
) -> None:
    """Predict with a CONFIG, or apply a model to slides with no YAML at all.

    With --model, --slides and --out it runs tile, embed, predict, explain, heatmap and view, with the patch size,
    resolution and encoder that the model was trained with.
    """
    if config is not None:
        if model or slides or out:
            raise ConfigError("give either CONFIG, or --model with --slides and --out")
        run_and_report(_load(config, set_), ("predict",), only)
        return
    if not (model and slides and out):
        raise ConfigError("give CONFIG, or all of --model DIR --slides 'incoming/*.svs' --out DIR")
    from ..apply import apply_config
    from ..pipeline import APPLY

    run_and_report(apply_config(model, slides, out, set_ or []), APPLY, only)


def explain(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Score every patch: why the model predicts what it predicts -> explain/

    Every method explains one number of the model, which depends on its task:

    [bold]classification[/]: the class's logit less the mean of the other classes' logits; of two classes, the log odds.

    [bold]multilabel[/]: the label's own logit, its log odds; other labels do not count against it.

    [bold]regression[/]: the predicted value, in standard deviations of the training labels.

    [bold]survival[/]: the log hazard (risk) of the Cox model.

    Of two classes the positive (last) one is explained, of several the predicted one; explain.classes names others.

    A method that does not fit a model or its task is skipped, and one line gives the reason. `wsi list explainers`
    shows the unit of each method's scores.
    """
    run_and_report(_load(config, set_), ("explain",), only)


def heatmap(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Paint the scores into OME-Zarr pyramids -> heatmap/"""
    run_and_report(_load(config, set_), ("heatmap",), only)


def evaluate(
    given: Annotated[
        list[str], typer.Argument(metavar="[explanations] CONFIG", help="YAML file; before it, what to measure.")
    ],
    set_: Overrides = None,
    only: Only = None,
) -> None:
    """AUROC and other metrics with intervals, maps against annotations -> evaluate/

    [bold]wsi evaluate explanations CONFIG[/] measures the methods of explain instead: whether the model relies on the
    patches that a map ranks highest, whether the map finds what was annotated, whether it depends on the model at all,
    and what it costs. It takes many forward passes a slide; the results are in evaluate/explanations.csv.
    """
    *what, config = given
    if what not in ([], ["explanations"]) or given == ["explanations"]:
        raise ConfigError(f"wsi evaluate {' '.join(given)} is not known; give CONFIG, or explanations CONFIG")
    run_and_report(_load(Path(config), set_), (what[0] if what else "evaluate",), only)


def view(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """QuPath GeoJSON and the report -> view/, report.html"""
    run_and_report(_load(config, set_), ("view",), only)


def demo(
    out: Annotated[Path, typer.Option(help="Where slides and results go.")] = Path("demo"),
    side_px: Annotated[
        int, typer.Option(help="Side of a slide; smaller slides are faster and have smaller lesions.")
    ] = 6000,
    set_: Overrides = None,
) -> None:
    """Draw 24 slides and run the whole pipeline on them: minutes on a laptop, no download."""
    from ..demo.study import demo_config, draw, places
    from ..pipeline import EXPLANATIONS, STAGES

    stages = (*STAGES[:-1], EXPLANATIONS, STAGES[-1])  # the report shows what is measured
    config = demo_config(out.resolve(), set_ or [])
    draw(out.resolve(), Console(stderr=True), side_px)
    run_and_report(config, stages, None)
    Console().print(*places(config), sep="\n", highlight=False, soft_wrap=True, markup=False)


def _load(path: Path, overrides: list[str] | None) -> Config:
    from ..config import load_config

    return load_config(path, overrides)


def run_and_report(config: Config, stages: Sequence[str], only: Sequence[str] | None) -> None:
    """Run the stages, print the results and where they are, and exit with 1 where slides failed."""
    from ..engine.stopping import EXIT_CODE, MESSAGE, stoppable
    from ..pipeline import run_stages
    from ..project import open_project
    from .progress import Bars

    console = Console(stderr=True)
    project = open_project(config, only or ())
    bars = Bars(console)
    try:
        with stoppable():
            failures = run_stages(project, stages, bars)
    except KeyboardInterrupt:
        bars.close()
        console.print(MESSAGE, highlight=False)
        raise typer.Exit(EXIT_CODE) from None
    finally:
        bars.close()
    _print_results(project, stages, console)
    if failures:
        slides = len({f.slide_id for f in failures})
        console.print(
            f"[yellow]{slides} of {len(project.cohort)} slides failed[/]; see {escape(str(project.folder.failures))}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _print_results(project: Project, stages: Sequence[str], console: Console) -> None:
    """The tables of the stages that measure, on stdout; the paths of what to open, on ``console``."""
    from ..pipeline import EXPLANATIONS

    if "evaluate" in stages:
        from ..evaluate.summary import read_summary

        for table in read_summary(project.folder.evaluate / "report.json"):
            Console().print(table)
    if EXPLANATIONS in stages:
        from ..evaluate.summary import read_explanations_summary

        for table in read_explanations_summary(project.folder.evaluate / "explanations.csv"):
            Console().print(table)
        measured = project.folder.evaluate / "explanations.md"
        console.print(f"measured   {measured}", highlight=False, soft_wrap=True, markup=False)
    if "view" in stages and project.folder.report.exists():
        console.print(f"report     {project.folder.report}", highlight=False, soft_wrap=True, markup=False)
