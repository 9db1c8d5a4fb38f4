"""The commands that only look: ``wsi list``, ``info``, ``config``, ``doctor``; and ``wsi compare`` for two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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


def list_(kind: Annotated[str, typer.Argument(help="encoders, models, explainers, readers or detectors")]) -> None:
    """The plug-ins that a config can name: encoders, models, explainers, readers, detectors."""
    from .tables import plugin_table

    Console().print(plugin_table(kind))


def info(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    mpp: Annotated[float | None, typer.Option(help="µm per pixel, if the file does not have it.")] = None,
) -> None:
    """Vendor, levels, resolution, bounds, and which reader opens the slide."""
    from .tables import slide_table

    Console().print(slide_table(slide, mpp))


def config(section: Annotated[str | None, typer.Argument(help="Only this section.")] = None) -> None:
    """Every key of the config with its default and meaning."""
    from .tables import config_table

    Console().print(config_table(section))


def doctor() -> None:
    """Versions, devices, disk, and which encoder weights are on this machine."""
    from .tables import doctor_table

    Console().print(doctor_table())
