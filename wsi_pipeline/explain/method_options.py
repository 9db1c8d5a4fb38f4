"""Checks of the methods' options: one line for the user instead of an error deep inside a method.

Each raises ``ConfigError`` that names the option, its value and what it must be.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError


def check_whole(name: str, value: int, least: int = 1) -> None:
    """Check that the option is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"method option {name} is {value!r}; it must be a whole number of at least {least}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that the option is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"method option {name} is {value!r}; it must be one of: {', '.join(choices)}")


def check_flag(name: str, value: bool) -> None:
    """Check that the option is a bool, not a text such as "yes"."""
    if not isinstance(value, bool):
        raise ConfigError(f"method option {name} is {value!r}; it must be true or false")
