"""Named plug-ins: encoders, models, explainers, readers, tissue detectors.

A plug-in is a factory whose keyword-only arguments are the schema of its options. It gets its name in one of three
ways: by the decorator ``register`` in a module of the registry's own package, by an entry point of an installed
package (group ``wsi_pipeline.encoders``, ``.models``, ``.explainers``, ``.readers`` or ``.detectors``), or by none of
them: ``"my_lab.uni:build"`` is imported as written. ``"timm:vit_small_patch16_224"`` passes the text after the colon to
the factory that is registered as ``timm:``.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
_log = logging.getLogger("wsi_pipeline")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One factory and the facts that ``wsi list`` shows."""

    name: str
    factory: Callable[..., T]
    info: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""  # name and version of the installed package that provides it; empty for our own

    @property
    def options(self) -> dict[str, Any]:
        """Option name -> default, from the factory's keyword-only arguments."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").split("\n", 1)[0]

    def try_build(self) -> tuple[T | None, str]:
        """The plug-in with its default options; or None, and one line that gives the reason."""
        try:
            return self.factory(), ""
        except Exception as error:  # noqa: BLE001  (whatever the factory of another package raises)
            return None, " ".join(f"{type(error).__name__}: {error}".split())


class Registry(Generic[T]):
    """The plug-ins of one kind.

    The modules of ``package`` are imported at the first lookup, not before. A plug-in of an installed package is
    imported when its own name is looked up, or by ``listing``.

    Parameters
    ----------
    kind : str
        What one plug-in is called in messages, e.g. ``"encoder"``.
    package : str
        Dotted name of the package whose modules register the built-in plug-ins.
    group : str, optional
        Group of the entry points of installed packages; default: ``wsi_pipeline.`` and the plural of the last word of
        ``kind``.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group or f"wsi_pipeline.{kind.split()[-1]}s"
        self._package = package
        self._entries: dict[str, Entry[T]] = {}
        self._plugins: dict[str, EntryPoint] = {}
        self._refused: dict[str, str] = {}  # name of an entry point that is not used -> why, one line
        self._complete = False

    def register(self, name: str, **info: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator. A name that ends in ``:`` takes what the user writes after the colon as first argument."""

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if not self._is_own(factory):
                self._discover()  # so that a plug-in never takes the name of one of ours
            if name in self._entries:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._entries[name] = Entry(name, factory, info)
            return factory

        return add

    def names(self) -> list[str]:
        """Names that can be used, sorted. No plug-in of an installed package is imported."""
        self._discover()
        return sorted({*self._entries, *self._plugins})

    def is_registered(self, name: str) -> bool:
        """Whether ``name`` is one of ours or of an installed package, and not a function that is imported as written.

        Nothing is imported but this package's own modules.
        """
        prefix, colon, _ = name.partition(":")
        return not {name, f"{prefix}:" if colon else name}.isdisjoint(self.names())

    def entries(self) -> list[Entry[T]]:
        """Entries of this package and of plug-ins imported so far, sorted by name."""
        self._discover()
        return [self._entries[name] for name in sorted(self._entries)]

    def listing(self) -> tuple[list[Entry[T]], list[str]]:
        """Import every plug-in; the entries sorted by name, and one line for each plug-in that cannot be used."""
        self._discover()
        faults = list(self._refused.values())
        for name in sorted(self._plugins):
            try:
                self._loaded(name)
            except UnknownNameError as error:
                faults.append(str(error))
        return self.entries(), faults

    def entry(self, name: str) -> Entry[T]:
        """Return the entry of ``name``; raises ``UnknownNameError`` that lists the others.

        Raises
        ------
        UnknownNameError
            There is no such plug-in, or the installed package that provides it cannot be imported.
        ConfigError
            Two installed packages provide the name.
        """
        self._discover()
        prefix, colon, _ = name.partition(":")
        for known in (name, f"{prefix}:") if colon else (name,):
            if known in self._plugins:
                return self._loaded(known)
            if known in self._entries:
                if known in self._refused:
                    _log.warning("%s", self._refused[known])
                return self._entries[known]
            if known in self._refused:
                raise ConfigError(self._refused[known])
        if colon:
            return Entry(name, self._import(name))
        close = [known for known in self.names() if known.lower() == name.lower()]
        close = close or get_close_matches(name.lower(), self.names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownNameError(
            f"there is no {self.kind} called {name!r}; {hint}Known: {', '.join(self.names())}; "
            f"or name your own as 'package.module:function'"
        )

    def check(self, name: str, options: Mapping[str, Any]) -> Entry[T]:
        """Return the entry if it takes these options; else raise ``UnknownNameError`` or ``ConfigError``."""
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
        self._find_plugins()
        self._complete = True

    def _find_plugins(self) -> None:
        """Note the entry points of installed packages; nothing of theirs is imported."""
        points: dict[str, list[EntryPoint]] = {}
        for point in _entry_points(self.group):
            points.setdefault(point.name, []).append(point)
        for name, same in points.items():
            providers = " and ".join(sorted(_package(point) for point in same))
            if name in self._entries and self._is_own(self._entries[name].factory):
                self._refused[name] = (
                    f"{self.kind} {name!r} of {providers} is not used: the name is taken by wsi_pipeline; "
                    f"give its entry point another name"
                )
            elif len(same) > 1:
                self._refused[name] = f"{self.kind} {name!r} is provided by {providers}; uninstall one of them"
            else:
                self._plugins[name] = same[0]

    def _is_own(self, factory: Callable[..., T]) -> bool:
        """Whether the factory is defined in the distribution that the registry belongs to."""
        module: str = getattr(factory, "__module__", self._package)
        return module.partition(".")[0] == self._package.partition(".")[0]

    def _loaded(self, name: str) -> Entry[T]:
        """Import the plug-in ``name``; facts come with it where its factory is also decorated with ``register``."""
        point = self._plugins[name]
        found = self._entries.get(name)
        if found is not None and found.package:
            return found
        package = _package(point)
        try:
            factory = point.load()
            inspect.signature(factory)
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UnknownNameError(
                f"{self.kind} {name!r} of {package} cannot be loaded from {point.value!r} ({reason}); "
                f"update that package or uninstall it"
            ) from error
        found = self._entries.get(name)
        entry: Entry[T] = found if found is not None and found.factory is factory else Entry(name, factory)
        self._entries[name] = replace(entry, package=package)
        return self._entries[name]

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


def _entry_points(group: str) -> list[EntryPoint]:
    """Entry points of installed packages; none, and a warning, where the metadata of a package is damaged."""
    from importlib.metadata import entry_points

    try:
        return list(entry_points(group=group))
    except (ValueError, TypeError, OSError, LookupError) as error:
        _log.warning("plug-ins of installed packages are not used: entry points cannot be read (%s)", error)
        return []


def _package(point: EntryPoint) -> str:
    """Name and version of the installed package."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module
