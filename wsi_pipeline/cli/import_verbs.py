"""``wsi import-features`` and ``wsi import-model``: what other programs made becomes ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .import_features import import_config
from .run_verbs import run_and_report
from .shared_options import Overrides


def import_features(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where CLAM, TRIDENT, STAMP or AtlasPatch wrote.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest CSV; default: OUT/slides.csv, written if absent.")
    ] = None,
    slides: Annotated[
        str | None, typer.Option(help="Folder of the slide files, for a manifest that is written.")
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
    set_: Overrides = None,
) -> None:
    """Turn features of other programs into bags of a run folder; continue with `wsi train OUT/config.yaml`.

    The program that made the files is recognised by their content; what they do not contain must be given and is never
    guessed.

    A manifest that is written has no labels: add a column label to OUT/slides.csv before training.
    """
    options: dict[str, Any] = {"patch_size_level0": patch_size_level0, "patch_size": patch_size, "coords": coords}
    options |= {"encoder": encoder, "slide_size": slide_size, "target_mpp": target_mpp}
    config = import_config(folder, out, set_ or [], manifest=manifest, slides=slides, mpp=mpp, options=options)
    run_and_report(config, ("tile", "embed"), None)


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of their training: .pt, .pth or .ckpt.")],
    from_: Annotated[str, typer.Option("--from", help="Whose code wrote it: abmil, clam, dsmil, dtfd or transmil.")],
    classes: Annotated[str, typer.Option(help="Names in the order of their labels, e.g. normal,tumour.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    bag: Annotated[Path | None, typer.Option(help="A bag (embed/<slide>.h5) with the features it reads.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Or: the encoder's name, see `wsi list encoders`.")] = None,
    mpp: Annotated[float | None, typer.Option(help="With --encoder: µm per pixel of the patches.")] = None,
    side_px: Annotated[int | None, typer.Option(help="With --encoder: pixels along a patch.")] = None,
    weights_digest: Annotated[
        str | None,
        typer.Option(help="With --encoder: digest of its weights as in its bags, if not on this machine."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What the file does not contain, e.g. distill=maxmins."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="classification or multilabel, if not as in their code.")] = None,
    seen: Annotated[
        Path | None, typer.Option(help="Text file: patients or slides of its training, one a line.")
    ] = None,
) -> None:
    """Take over a model that the authors' own code trained: same features, same logits and attention.

    Sizes come from the file, which is read as numbers only; a tensor that is not recognised is refused by name, and
    what the file does not contain is printed. For example:

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
