"""Errors that a user can act on: each message states what is wrong, where, and what to do.

Everything that a user may cause is a ``WsiError``; the command line prints its one line and ends with
``exit_code``. Any other exception is a bug.
"""

from __future__ import annotations

from typing import ClassVar


class WsiError(Exception):
    """Every foreseen failure. ``exit_code`` 1: this slide fails, the others go on; 2: the user must fix something."""

    exit_code: ClassVar[int] = 2


class ConfigError(WsiError, ValueError):
    """A config, manifest or option that cannot be used as written."""


class UnknownNameError(WsiError, LookupError):
    """A plug-in, class or stage that does not exist."""


class SlideError(WsiError, OSError):
    """A slide that cannot be opened, has no resolution, or breaks while it is read. Costs that slide only."""

    exit_code = 1


class RegionError(SlideError):
    """A region of an otherwise good slide that cannot be decoded. Costs the patches that touch it."""


class EmptySlideError(WsiError):
    """A slide without tissue, or without a patch that contains enough of it. Costs that slide only."""

    exit_code = 1


class ArtifactError(WsiError):
    """A file of the run folder, a model or a bag that is missing, damaged, or does not fit its use."""


class StorageError(WsiError, OSError):
    """The run folder cannot be written (full disk, quota, permission). Stops the run: every slide would fail."""


class EngineError(WsiError):
    """The workers cannot be started or reached."""
