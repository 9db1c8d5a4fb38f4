"""Checks of the models' options, at the door: one line for the user in place of a shape error deep in torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError


def check_counts(**options: int) -> None:
    """Every option is a whole number of at least 1."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"model option {name} is {value!r}; it must be a whole number of at least 1")


def check_dropout(dropout: float) -> None:
    """A share of units that can be dropped."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"model option dropout is {dropout!r}; it must be at least 0 and less than 1")


def check_flag(name: str, value: bool) -> None:
    """The option is true or false, and no word for it."""
    if not isinstance(value, bool):
        raise ConfigError(f"model option {name} is {value!r}; it must be true or false")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """The option is one of its known words."""
    if value not in choices:
        raise ConfigError(f"model option {name} is {value!r}; it must be one of: {', '.join(choices)}")
