"""The script that loads the tiles into QuPath, and the list by which it identifies the slides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ..artifacts import Provenance, write_text_with_provenance
from ..types import SlideRow

LOADER = "load_into_qupath.groovy"
SLIDES = "slides.json"


def loader_text() -> str:
    """The text of the script; it is the same for every run, since it determines its own folder."""
    return (files(__package__) / LOADER).read_text(encoding="utf-8")


def slides_text(slides: Sequence[SlideRow]) -> str:
    """JSON text of file name -> slide_id, for the file names that belong to a single slide."""
    counts = Counter(slide.path.name for slide in slides)
    unique = {slide.path.name: slide.slide_id for slide in slides if counts[slide.path.name] == 1}
    return json.dumps(unique, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write_loader(slides: Sequence[SlideRow], *, output: Path, provenance: Provenance) -> int:
    """Write the script to ``output`` and the list ``slides.json`` beside it; returns the number of slides."""
    listing = output.parent / SLIDES
    write_text_with_provenance(listing, slides_text(slides), provenance)
    write_text_with_provenance(output, loader_text(), provenance)
    return len(slides)
