"""The config and the manifest of ``wsi import-features``, for a lab that has features already. Light to import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import Config
    from ..types import SlideRow


def import_config(
    folder: Path,
    out: Path,
    overrides: list[str],
    *,
    manifest: Path | None = None,
    slides: str | None = None,
    mpp: float | None = None,
    options: Mapping[str, Any],
) -> Config:
    """The config of ``wsi import-features``. Without ``manifest``, OUT/slides.csv is used, and written if absent.

    ``slides``: the folder of the slide files; those of the same name go into the manifest, into one that an earlier
    call wrote where no file is at the path that it gives. ``options``: fields of
    ``interop.feature_files.ImportOptions``, None where not given. Raises ``ConfigError``.
    """
    from ..config import build_config
    from ..project import write_manifest

    folder, out = folder.expanduser().resolve(), out.expanduser().resolve()
    listed = (manifest or out / "slides.csv").expanduser().resolve()
    if slides is not None and manifest is not None and listed.exists():
        raise ConfigError(f"{listed} already gives the slides' paths; leave --slides out, or change its path column")
    given_options = {name: value for name, value in options.items() if value is not None}
    if "coords" in given_options:
        given_options["coords"] = str(Path(given_options["coords"]).expanduser().resolve())
    if "slide_size" in given_options:
        given_options["slide_size"] = parse_size(str(given_options["slide_size"]))
    data: dict[str, Any] = {
        "slides": str(listed),
        "out": str(out),
        "embed": {"import": str(folder), "import_options": given_options},
        "read": {"mpp": mpp},
    }
    config = build_config(data, overrides, base=Path.cwd(), source="--set")
    if manifest is None and not listed.exists():
        write_manifest(listed, _rows(folder, out, slides))
    elif slides is not None:
        _fill_paths(listed, _available(slides))
    return config


def parse_size(text: str) -> list[int] | str:
    """``WIDTHxHEIGHT`` in level-0 pixels, or ``patches``. Raises ``ConfigError``."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if found is None and text != "patches":
        raise ConfigError(f"--slide-size {text}: write WIDTHxHEIGHT in level-0 pixels, e.g. 98304x76800, or patches")
    return text if found is None else [int(found[1]), int(found[2])]


def _rows(folder: Path, out: Path, slides: str | None) -> list[SlideRow]:
    """A line for every feature file; a slide that is not available gets a path where no file is."""
    from ..interop.feature_files import slide_names
    from ..types import SlideRow

    names = slide_names(folder)
    if not names:
        raise ConfigError(f"{folder} and below contain no .h5 file with features and coords; give the folder that does")
    available = _available(slides) if slides else {}
    return [SlideRow(name, available.get(name, out / "slides" / name)) for name in names]


def _available(slides: str) -> dict[str, Path]:
    """Name -> path of the slide files in a folder."""
    from ..apply import find_slides
    from ..project import slides_from_paths

    return {row.slide_id: row.path for row in slides_from_paths(find_slides([slides]))}


def _fill_paths(manifest: Path, available: Mapping[str, Path]) -> None:
    """Give the slides of a manifest whose file does not exist the paths of ``available``; other columns stay."""
    from ..artifacts import write_text
    from ..csvtable import csv_text, read_csv
    from ..project import read_manifest

    missing = {str(row.path): row.slide_id for row in read_manifest(manifest) if not row.path.exists()}
    header, lines = read_csv(manifest)
    column = [name.lstrip("\ufeff").strip() for name in header].index("path")
    for line in filter(any, lines):
        name = missing.get(str(manifest.parent / line[column].strip()), "")
        line[column] = str(available.get(name, line[column]))
    write_text(manifest, csv_text(header, lines))
