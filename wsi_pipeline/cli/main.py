"""The command ``wsi``. Heavy libraries load inside the rooms, so help answers at once.

Exit codes: 0 all fine; 1 some slides failed (listed in failures.csv, the rest done); 2 the user must fix
something; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import ConfigError, WsiError
from ..studies.commands import manifest, summary
from .import_features import features_command

if TYPE_CHECKING:
    from ..config import Config

app = typer.Typer(
    name="wsi",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From gigapixel pathology slides to slide-level diagnoses that can be looked at and trusted.\n\n"
    "A manifest (a CSV with a [bold]path[/] column) and a config of two lines are enough:\n\n"
    "  slides: slides.csv\n\n  out: run\n\n"
    "then [bold]wsi run config.yaml[/]. Try [bold]wsi demo[/] first: it draws its own slides.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; `wsi config` prints every key.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. --set tile.mpp=1.0")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="SLIDE_ID", help="Work on this slide only.")]


def _console() -> Console:
    return Console(stderr=True)


def _load(path: Path, overrides: list[str] | None) -> Config:
    from ..config import load_config

    return load_config(path, overrides)


def _run(config: Config, stages: tuple[str, ...], only: list[str] | None) -> None:
    """Run the stages, say where to look, end with the right exit code."""
    from ..engine.stopping import EXIT_CODE, SAID, stoppable
    from ..pipeline import run_stages
    from ..project import open_project
    from .progress import Bars

    console = _console()
    project = open_project(config, only or ())
    bars = Bars(console)
    try:
        with stoppable():
            failures = run_stages(project, stages, bars)
    except KeyboardInterrupt:
        bars.close()
        console.print(SAID, highlight=False)
        raise typer.Exit(EXIT_CODE) from None
    finally:
        bars.close()
    if "evaluate" in stages:
        from ..evaluate.summary import read_summary

        for table in read_summary(project.folder.evaluate / "report.json"):
            Console().print(table)
    if "explanations" in stages:
        from ..evaluate.summary import read_explanations_summary

        for table in read_explanations_summary(project.folder.evaluate / "explanations.csv"):
            Console().print(table)
        console.print(f"measured   {project.folder.evaluate / 'explanations.md'}", highlight=False, soft_wrap=True)
    if "view" in stages and project.folder.report.exists():
        console.print(f"report     {project.folder.report}", highlight=False, soft_wrap=True, markup=False)
    if failures:
        slides = len({f.slide_id for f in failures})
        console.print(
            f"[yellow]{slides} of {len(project.cohort)} slides failed[/]; see {escape(str(project.folder.failures))}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


@app.command()
def run(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
    """Every stage: tile, embed, train, predict, explain, heatmap, evaluate, view. Done work is not done again."""
    from ..pipeline import stages_of

    loaded = _load(config, set_)
    _run(loaded, stages_of(loaded), only)


def _stage(name: str, text: str) -> None:
    def command(config: ConfigPath, set_: Overrides = None, only: Only = None) -> None:
        _run(_load(config, set_), (name,), only)

    command.__doc__ = text
    app.command(name)(command)


_stage("tile", "Find tissue and lay the patch grid on it -> tile/")
_stage("embed", "Encode every patch -> embed/ (HDF5 bags)")
_stage("train", "Train MIL models, patient-level folds -> train/")


@app.command()
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

    With --model, --slides and --out it runs tile, embed, predict, explain, heatmap and view, at the patch size,
    resolution and encoder that the model was trained with.
    """
    if config is not None:
        if model or slides or out:
            raise ConfigError("give either CONFIG, or --model with --slides and --out")
        _run(_load(config, set_), ("predict",), only)
        return
    if not (model and slides and out):
        raise ConfigError("give CONFIG, or all of --model DIR --slides 'incoming/*.svs' --out DIR")
    from ..apply import apply_config
    from ..pipeline import APPLY

    _run(apply_config(model, slides, out, set_ or []), APPLY, only)


app.command(name="import-features")(features_command(lambda config: _run(config, ("tile", "embed"), None)))


@app.command(name="import-model")
def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What their training wrote: .pt, .pth or .ckpt.")],
    from_: Annotated[str, typer.Option("--from", help="Whose code wrote it: abmil, clam, dsmil, dtfd or transmil.")],
    classes: Annotated[str, typer.Option(help="Names in the order of their labels, e.g. normal,tumour.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    bag: Annotated[Path | None, typer.Option(help="A bag (embed/<slide>.h5) with the features it reads.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Or: the encoder's name, see `wsi list encoders`.")] = None,
    mpp: Annotated[float | None, typer.Option(help="With --encoder: µm per pixel of the patches.")] = None,
    side_px: Annotated[int | None, typer.Option(help="With --encoder: pixels along a patch.")] = None,
    weights_digest: Annotated[
        str | None, typer.Option(help="With --encoder: digest of its weights as bags say it, if not on this machine.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What the file cannot say, e.g. distill=maxmins.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="classification or multilabel, if not as in their code.")] = None,
    seen: Annotated[
        Path | None, typer.Option(help="Text file: patients or slides of its training, one a line.")
    ] = None,
) -> None:
    """Take over a model that the authors' own code trained: same features, same logits and attention.

    Sizes come from the file, which is read as numbers only; a tensor that is not understood is refused by name, and
    what the file cannot say is printed. For example:

      wsi import-model s_0_checkpoint.pt --from clam --classes normal,tumour --bag run/embed/slide_1.h5 --out clam0

    then [bold]wsi predict --model clam0 --slides 'incoming/*.svs' --out run[/].
    """
    from ..aggregate import import_checkpoint

    features = import_checkpoint.pick_features(bag, encoder, mpp, side_px, weights_digest)
    names = tuple(name.strip() for name in classes.split(","))
    card, found = import_checkpoint.import_model(
        file,
        from_,
        features,
        names,
        out,
        options=import_checkpoint.parse_options(option or []),
        task=import_checkpoint.pick_task(task),
        seen=import_checkpoint.read_names(seen) if seen else (),
    )
    for line in import_checkpoint.summary(out, card, found):
        typer.echo(line)


_stage("explain", "Score every patch: why the model says what it says -> explain/")
_stage("heatmap", "Paint the scores into OME-Zarr pyramids -> heatmap/")


@app.command()
def evaluate(
    given: Annotated[
        list[str], typer.Argument(metavar="[explanations] CONFIG", help="YAML file; before it, what to measure.")
    ],
    set_: Overrides = None,
    only: Only = None,
) -> None:
    """AUROC and its kin with intervals, maps against annotations -> evaluate/

    [bold]wsi evaluate explanations CONFIG[/] measures the methods of explain instead: does the model rest on the
    patches that a map names, does the map find what was outlined, is it about the model at all, what does it cost.
    It takes many forward passes a slide; its numbers stand in evaluate/explanations.csv.
    """
    *what, config = given
    if what not in ([], ["explanations"]) or given == ["explanations"]:
        raise ConfigError(f"wsi evaluate {' '.join(given)} is not known; give CONFIG, or explanations CONFIG")
    _run(_load(Path(config), set_), (what[0] if what else "evaluate",), only)


_stage("view", "QuPath GeoJSON and the report -> view/, report.html")
app.add_typer(manifest, name="manifest")
app.command()(summary)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, after `wsi predict`.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN", help="Another, or the same with --model and --model-b.")],
    model: Annotated[str | None, typer.Option(help="Only this model; default: all that both runs have.")] = None,
    model_b: Annotated[str | None, typer.Option(help="Its counterpart in the second run, if named otherwise.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
) -> None:
    """Is one model better? Paired tests on the slides and patients held out in both runs (DeLong, bootstrap)."""
    from ..evaluate.compare import compare_runs, comparison_table, write_comparison

    found = compare_runs(run_a, run_b, model_a=model, model_b=model_b)
    Console().print(comparison_table(found, (str(run_a), str(run_b))))
    if out:
        write_comparison(out, found)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where slides and results go.")] = Path("demo"),
    set_: Overrides = None,
) -> None:
    """Draw 24 slides and take them the whole way: minutes on a laptop, no download."""
    from ..demo.study import demo_config, draw, places
    from ..pipeline import EXPLANATIONS, STAGES

    stages = (*STAGES[:-1], EXPLANATIONS, STAGES[-1])  # the report shows what is measured
    console = _console()
    config = demo_config(out.resolve(), set_ or [])
    draw(out.resolve(), console)
    _run(config, stages, None)
    Console().print(*places(config), sep="\n", highlight=False, soft_wrap=True, markup=False)


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(help="encoders, models, explainers, readers or detectors")]) -> None:
    """What can be named in the config: encoders, models, explainers, readers, detectors."""
    from .tables import plugin_table

    Console().print(plugin_table(kind))


@app.command()
def info(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    mpp: Annotated[float | None, typer.Option(help="µm per pixel, if the file does not say.")] = None,
) -> None:
    """Vendor, levels, resolution, bounds, and which reader opens the slide."""
    from .tables import slide_table

    Console().print(slide_table(slide, mpp))


@app.command()
def config(section: Annotated[str | None, typer.Argument(help="Only this section.")] = None) -> None:
    """Every key of the config with its default and meaning."""
    from .tables import config_table

    Console().print(config_table(section))


@app.command()
def doctor() -> None:
    """Versions, devices, disk, and which encoder weights are at hand."""
    from .tables import doctor_table

    Console().print(doctor_table())


def _version(value: bool) -> None:
    if value:
        typer.echo(f"wsi_pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: every foreseen failure is one line on stderr and an exit code."""
    try:
        app()
    except WsiError as error:
        print(f"wsi: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
