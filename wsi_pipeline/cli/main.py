"""The command ``wsi``: the table of its commands. Heavy libraries are imported when a command runs, so help is quick.

Exit codes: 0 success; 1 some slides failed (listed in failures.csv, the others are finished); 2 the user must fix
something; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from ..errors import WsiError
from ..studies.commands import manifest, summary
from . import import_verbs, inspect_verbs, run_verbs

app = typer.Typer(
    name="wsi",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From gigapixel pathology slides to slide-level diagnoses that can be inspected and trusted.\n\n"
    "A manifest (a CSV with a [bold]path[/] column) and a config of two lines are enough:\n\n"
    "  slides: slides.csv\n\n  out: run\n\n"
    "then [bold]wsi run config.yaml[/]. Try [bold]wsi demo[/] first: it draws its own slides.",
)

_COMMANDS: dict[str, Callable[..., None]] = {  # in the order of `wsi --help`: the stages as they follow each other
    "run": run_verbs.run,
    "tile": run_verbs.tile,
    "embed": run_verbs.embed,
    "train": run_verbs.train,
    "predict": run_verbs.predict,
    "import-features": import_verbs.import_features,
    "import-model": import_verbs.import_model,
    "explain": run_verbs.explain,
    "heatmap": run_verbs.heatmap,
    "evaluate": run_verbs.evaluate,
    "view": run_verbs.view,
    "summary": summary,
    "compare": inspect_verbs.compare,
    "demo": run_verbs.demo,
    "list": inspect_verbs.list_,
    "info": inspect_verbs.info,
    "config": inspect_verbs.config,
    "doctor": inspect_verbs.doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(manifest, name="manifest")


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
