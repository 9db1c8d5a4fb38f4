"""Checks of the methods' options, at the door: one line for the user in place of an error deep in a method."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError


def check_whole(name: str, value: int, least: int = 1) -> None:
    """The option is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"method option {name} is {value!r}; it must be a whole number of at least {least}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """The option is one of its known words."""
    if value not in choices:
        raise ConfigError(f"method option {name} is {value!r}; it must be one of: {', '.join(choices)}")


def check_flag(name: str, value: bool) -> None:
    """The option is true or false, and no word for it."""
    if not isinstance(value, bool):
        raise ConfigError(f"method option {name} is {value!r}; it must be true or false")
