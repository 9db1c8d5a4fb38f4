"""What the public functions check of their arguments before they begin."""

from __future__ import annotations

import os


def require_opened(value: object, function: str, what: str, how: str) -> None:
    """Raise ``TypeError`` with one line where a path was given instead of what is read from it with ``how``."""
    if isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{function} takes {what}, not a path; wsi.{how} gives one")
