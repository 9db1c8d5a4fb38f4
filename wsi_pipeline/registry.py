"""Named plug-ins, found by folder: one decorated factory in one new file of a room adds one thing.

A factory's keyword-only arguments are the schema of its options. ``"my_lab.uni:build"`` names a factory outside
the project; ``"timm:vit_small_patch16_224"`` gives the text after the colon to the factory registered as ``timm:``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from .errors import ConfigError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered factory and what ``wsi list`` says of it."""

    name: str
    factory: Callable[..., T]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Option name -> default, from the factory's keyword-only arguments."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").split("\n", 1)[0]


class Registry(Generic[T]):
    """The plug-ins of one kind; every module of ``package`` is imported at the first question, not before."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry[T]] = {}
        self._complete = False

    def register(self, name: str, **info: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator. A name that ends in ``:`` takes what the user writes after the colon as first argument."""

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._entries:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._entries[name] = Entry(name, factory, info)
            return factory

        return add

    def names(self) -> list[str]:
        """Registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def entries(self) -> list[Entry[T]]:
        """Registered entries, sorted by name."""
        return [self._entries[name] for name in self.names()]

    def entry(self, name: str) -> Entry[T]:
        """The entry that ``name`` means; raises ``UnknownNameError`` that lists the others."""
        self._discover()
        if name in self._entries:
            return self._entries[name]
        prefix = name.partition(":")[0]
        if ":" in name:
            if f"{prefix}:" in self._entries:
                return self._entries[f"{prefix}:"]
            return Entry(name, self._import(name))
        close = get_close_matches(name, self._entries, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise UnknownNameError(
            f"there is no {self.kind} called {name!r}{hint} Known: {', '.join(self.names())}; "
            f"or name your own as 'package.module:function'"
        )

    def check(self, name: str, options: Mapping[str, Any]) -> Entry[T]:
        """The entry, if there is one and it takes these options; else ``UnknownNameError`` or ``ConfigError``."""
        entry = self.entry(name)
        unknown = sorted(set(options) - set(entry.options))
        if unknown:
            known = ", ".join(sorted(entry.options)) or "none"
            raise ConfigError(f"{self.kind} {name!r} has no option {unknown[0]!r}; it takes: {known}")
        return entry

    def build(self, name: str, *args: Any, **options: Any) -> T:
        """Call the factory; an option it does not take raises ``ConfigError`` that lists those it takes."""
        entry = self.check(name, options)
        if entry.name.endswith(":"):
            args = (name.partition(":")[2], *args)
        return entry.factory(*args, **options)

    def _discover(self) -> None:
        if self._complete:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        self._complete = True

    def _import(self, name: str) -> Callable[..., T]:
        module_name, _, attribute = name.partition(":")
        try:
            factory: Callable[..., T] = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UnknownNameError(
                f"{self.kind} {name!r} cannot be imported ({error}); "
                f"is {module_name!r} installed in this environment and spelt 'package.module:function'?"
            ) from error
        return factory
