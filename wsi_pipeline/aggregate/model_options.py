"""Checks of the models' options: one line for the user instead of a shape error deep inside torch.

Each raises ``ConfigError`` that names the option, its value and what it must be.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError


def check_counts(**options: int) -> None:
    """Check that every option is a whole number of at least 1."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"model option {name} is {value!r}; it must be a whole number of at least 1")


def check_dropout(dropout: float) -> None:
    """Check that ``dropout`` is a fraction of units that can be dropped: from 0 to below 1."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"model option dropout is {dropout!r}; it must be at least 0 and less than 1")


def check_flag(name: str, value: bool) -> None:
    """Check that the option is a bool, not a text such as "yes"."""
    if not isinstance(value, bool):
        raise ConfigError(f"model option {name} is {value!r}; it must be true or false")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that the option is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"model option {name} is {value!r}; it must be one of: {', '.join(choices)}")
