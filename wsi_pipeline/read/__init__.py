"""Open slides and read their pixels: one frame for all formats, white outside, unreadable regions always reported.

A slide is opened in the process that reads it: ``open_slide(path, config, mpp)`` returns a ``types.Slide``. Readers
are plug-ins (see ``slide.Backend``); the first one that opens the file is used, unless the config names one.
"""

from __future__ import annotations

from .batch_reader import Batch, Batches, read_batches
from .overview import Overview, read_overview
from .patch_geometry import patch_level, read_patch
from .slide import Backend, open_slide, readers

__all__ = [
    "Backend",
    "Batch",
    "Batches",
    "Overview",
    "open_slide",
    "patch_level",
    "read_batches",
    "read_overview",
    "read_patch",
    "readers",
]
