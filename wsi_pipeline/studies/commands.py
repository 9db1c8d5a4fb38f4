"""The commands ``wsi manifest`` and ``wsi summary``, used by the workflows in workflows/ and on their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..types import SlideRow

manifest = typer.Typer(no_args_is_help=True, help="Write the manifest of a public cohort from its download.")

Data = Annotated[Path, typer.Argument(metavar="FOLDER", help="The download; slides may be in subfolders.")]
Out = Annotated[Path, typer.Option(help="The manifest to write.")]
LeaveOut = Annotated[list[str] | None, typer.Option(metavar="SLIDE_ID", help="Leave this slide out as well.")]
Count = Annotated[int | None, typer.Option(help="Expected number of slides; otherwise nothing is written.")]


@manifest.command()
def camelyon16(
    folder: Data,
    out: Out = Path("slides.csv"),
    reference: Annotated[Path | None, typer.Option(help="reference.csv, if it is in another folder.")] = None,
    leave_out: LeaveOut = None,
    count: Count = None,
) -> None:
    """CAMELYON16: labels, official split, lesion annotations; slides with known issues are handled by a listed rule."""
    from .camelyon16 import read_camelyon16

    _write(read_camelyon16(folder, reference), out, leave_out, count)


@manifest.command()
def tcga(
    folder: Data,
    sheet: Annotated[Path, typer.Option(help="The GDC sample sheet (TSV).")],
    out: Out = Path("slides.csv"),
    project: Annotated[
        list[str] | None, typer.Option(help="A project, e.g. TCGA-LUAD; default: all in the sheet.")
    ] = None,
    clinical: Annotated[Path | None, typer.Option(help="The GDC clinical table (TSV): time and event.")] = None,
    leave_out: LeaveOut = None,
    count: Count = None,
) -> None:
    """TCGA: diagnostic slides with project, patient and tissue-source site."""
    from .tcga import read_tcga

    _write(read_tcga(folder, sheet, project or (), clinical), out, leave_out, count)


@manifest.command(name="classic-mil")
def classic_mil(
    file: Annotated[Path, typer.Argument(metavar="CSV", help="Lines of label, bag, features…; no header.")],
    out: Annotated[Path, typer.Option(help="Run folder in which bags and slides.csv are written.")],
) -> None:
    """MUSK1, elephant and similar data sets: bags without slides, and their manifest."""
    from .classic_mil import write_study

    typer.echo(f"{out / 'slides.csv'}: {write_study(file, out)} bags in {out / 'embed'}")


def summary(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished run folders.")],
    out: Annotated[Path, typer.Option(help="Folder for summary.csv and summary.md.")],
) -> None:
    """Summarise runs in one table, mean ± sd over the seeds: runs in one folder differ in their seed only."""
    from .study_table import summarise

    typer.echo(summarise(runs, out), nl=False)


def _write(rows: tuple[SlideRow, ...], out: Path, leave_out: list[str] | None, count: int | None) -> None:
    from .manifest import select_slides, write_study_manifest

    kept = select_slides(rows, leave_out or (), count)
    write_study_manifest(out, kept)
    parts = Counter((row.split or "slides", row.label) for row in kept)
    text = ", ".join(f"{part} {label} {n}" for (part, label), n in sorted(parts.items()))
    typer.echo(f"{out}: {text}; {sum(row.annotation is not None for row in kept)} with an annotation")
