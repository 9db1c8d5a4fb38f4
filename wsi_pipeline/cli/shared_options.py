"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; `wsi config` prints every key.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. --set tile.mpp=1.0")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="SLIDE_ID", help="Process this slide only.")]
