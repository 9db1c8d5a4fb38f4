"""``wsi import-features``: a config and a manifest for a lab that has features already. Light to import."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import Config
    from ..types import SlideRow


def features_command(run: Callable[[Config], None]) -> Callable[..., None]:
    """The command; ``run`` does the stages that make bags of the files."""

    def command(
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where CLAM, TRIDENT, STAMP or AtlasPatch wrote.")],
        out: Annotated[Path, typer.Option(help="Run folder to write.")],
        manifest: Annotated[
            Path | None, typer.Option(help="Manifest CSV; default: OUT/slides.csv, made if absent.")
        ] = None,
        slides: Annotated[
            str | None, typer.Option(help="Folder of the slide files, for a manifest that is made.")
        ] = None,
        mpp: Annotated[
            float | None, typer.Option(help="µm per level-0 pixel, for slides whose manifest line gives none.")
        ] = None,
        patch_size_level0: Annotated[float | None, typer.Option(help="Side of a patch in level-0 pixels.")] = None,
        patch_size: Annotated[int | None, typer.Option(help="Side of a patch in pixels, for the encoder.")] = None,
        coords: Annotated[Path | None, typer.Option(help="Folder of CLAM's coordinates files (patches/).")] = None,
        encoder: Annotated[str | None, typer.Option(help="Name of the encoder; of several, the one to take.")] = None,
        slide_size: Annotated[
            str | None, typer.Option(help="WIDTHxHEIGHT of level 0; patches: as far as they reach.")
        ] = None,
        target_mpp: Annotated[
            float | None, typer.Option(help="Nominal µm per pixel of the patches, one for all slides.")
        ] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key.")] = None,
    ) -> None:
        """Turn features from elsewhere into bags of a run folder, which `wsi train OUT/config.yaml` goes on with.

        Who made the files is seen from what they hold; what they do not hold is asked for, never guessed.

        A manifest that is made has no labels: add a column label to OUT/slides.csv before training.
        """
        options: dict[str, Any] = {"patch_size_level0": patch_size_level0, "patch_size": patch_size, "coords": coords}
        options |= {"encoder": encoder, "slide_size": slide_size, "target_mpp": target_mpp}
        run(import_config(folder, out, set_ or [], manifest=manifest, slides=slides, mpp=mpp, options=options))

    return command


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

    ``slides``: where the slide files are; those of the same name go into the manifest. ``options``: of
    ``foreign.ImportOptions``, None where not given. Raises ``ConfigError``.
    """
    from ..config import build_config
    from ..project import write_manifest

    folder, out = folder.expanduser().resolve(), out.expanduser().resolve()
    listed = (manifest or out / "slides.csv").expanduser().resolve()
    if slides is not None and listed.exists():
        raise ConfigError(f"{listed} says where the slides are; leave --slides out, or change its path column")
    told = {name: value for name, value in options.items() if value is not None}
    if "coords" in told:
        told["coords"] = str(Path(told["coords"]).expanduser().resolve())
    if "slide_size" in told:
        told["slide_size"] = parse_size(str(told["slide_size"]))
    data: dict[str, Any] = {
        "slides": str(listed),
        "out": str(out),
        "embed": {"import": str(folder), "import_options": told},
        "read": {"mpp": mpp},
    }
    config = build_config(data, overrides, base=Path.cwd(), source="--set")
    if manifest is None and not listed.exists():
        write_manifest(listed, _rows(folder, out, slides))
    return config


def parse_size(text: str) -> list[int] | str:
    """``WIDTHxHEIGHT`` in level-0 pixels, or ``patches``. Raises ``ConfigError``."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if found is None and text != "patches":
        raise ConfigError(f"--slide-size {text}: write WIDTHxHEIGHT in level-0 pixels, e.g. 98304x76800, or patches")
    return text if found is None else [int(found[1]), int(found[2])]


def _rows(folder: Path, out: Path, slides: str | None) -> list[SlideRow]:
    """A line for every feature file; a slide that is not at hand gets a path at which there is none."""
    from ..apply import find_slides
    from ..interop.feature_files import slide_names
    from ..project import slides_from_paths
    from ..types import SlideRow

    names = slide_names(folder)
    if not names:
        raise ConfigError(f"{folder} and below hold no .h5 file with features and coords; give the folder that does")
    at_hand = {row.slide_id: row.path for row in slides_from_paths(find_slides([slides]))} if slides else {}
    return [SlideRow(name, at_hand.get(name, out / "slides" / name)) for name in names]
