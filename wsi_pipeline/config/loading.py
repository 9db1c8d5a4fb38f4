"""YAML -> one frozen config. Two lines (``slides:`` and ``out:``) are a complete config; the rest has defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from ..errors import ConfigError
from .aggregate import AggregateConfig, ModelChoice
from .base import Section
from .embed import EmbedConfig
from .engine import EngineConfig
from .evaluate import EvaluateConfig
from .explain import ExplainConfig
from .heatmap import HeatmapConfig
from .predict import PredictConfig
from .read import ReadConfig
from .tile import TileConfig
from .train import TrainConfig
from .train_recipes import RECIPES
from .view import ViewConfig

_TYPE = re.compile(r"constrained-\w+|(tuple|list|literal|function-\w+)\[.*\]")


class Config(Section):
    """The whole config. Only ``slides`` and ``out`` must be given."""

    slides: Path = Field(description="the manifest: a CSV with a path column")
    out: Path = Field(description="the run folder")
    read: ReadConfig = ReadConfig()
    tile: TileConfig = TileConfig()
    embed: EmbedConfig = EmbedConfig()
    aggregate: AggregateConfig = AggregateConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    explain: ExplainConfig = ExplainConfig()
    heatmap: HeatmapConfig = HeatmapConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    view: ViewConfig = ViewConfig()
    engine: EngineConfig = EngineConfig()


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] | None = None) -> Config:
    """Read and check a config.

    Parameters
    ----------
    path : str or path-like
        YAML file. Relative paths in it are taken from its folder.
    overrides : sequence of str, optional
        ``section.key=value``, the value in YAML, e.g. ``tile.mpp=1.0``.

    Returns
    -------
    Config
        Frozen, with every default filled in and every path absolute.

    Raises
    ------
    ConfigError
        One line that names the file or the key, and what to do.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config {path} is not text; give the path of a YAML file") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} contains no settings; it needs at least 'slides: manifest.csv' and 'out: run'")
    return build_config(data, overrides or (), base=path.parent, source=str(path))


def build_config(data: dict[str, Any], overrides: Sequence[str], *, base: Path, source: str) -> Config:
    """Validate ``data`` after ``overrides``. Relative paths in it are taken from ``base``."""
    for override in overrides:
        _apply(data, override)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from error
    return _anchored(config, base)


_S = TypeVar("_S", bound=Section)


def with_values(section: _S, where: str, **values: Any) -> _S:
    """Copy a section with other values, validated; a value of None keeps the section's own.

    Raises ``ConfigError`` with one line that begins with ``where`` and names the key.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return type(section).model_validate({**section.model_dump(exclude_unset=True), **given})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from error


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: write it as section.field=value, for example --set tile.mpp=1.0")
    *sections, last = name.strip().split(".")
    node = data
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section!r} is not a section")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = _key(first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; {_similar_key(where)}`wsi config` lists every key with its default"
    if first["type"] == "missing":
        return f"{where!r} is missing; a config needs 'slides: manifest.csv' and 'out: run'"
    others = len({_key(each["loc"]) for each in error.errors()}) - 1
    more = f" (and {others} more)" if others else ""
    message = first["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "List")
    return f"{where} = {first['input']!r}: {message}{more}"


def _key(parts: Sequence[int | str]) -> str:
    """The key that an error is about, without the parts that name a type among several."""
    return ".".join(str(part) for part in parts if not _TYPE.fullmatch(str(part)))


def _similar_key(key: str) -> str:
    """``did you mean 'tile.mpp'? `` for a key that resembles one, else nothing."""
    sections = {name: field.default for name, field in Config.model_fields.items()}
    known = [
        f"{name}.{key}"
        for name, section in sections.items()
        if isinstance(section, Section)
        for key in type(section).model_fields
    ] + [*sections]
    close = get_close_matches(key, known, n=1, cutoff=0.8)
    return f"did you mean {close[0]!r}? " if close else ""


def _anchored(config: Config, base: Path) -> Config:
    """The config with every path made absolute, relative to ``base``."""

    def anchor(section: Section) -> Section:
        update: dict[str, Any] = {}
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, Section):
                update[name] = anchor(value)
            elif isinstance(value, Path):
                update[name] = (base / value.expanduser()).resolve()
        return section.model_copy(update=update)

    anchored = anchor(config)
    assert isinstance(anchored, Config)
    return anchored


_SAME_FOR_ALL_MODELS = {"task", "bag", "folds", "site_preserving", "val_fraction", "seeds", "classes"}
_SAME_FOR_ALL_MODELS |= {"tensorboard", "state_every_s"}


def train_of(section: TrainConfig, choice: ModelChoice) -> TrainConfig:
    """The train section of one model: its own keys override the section's. Raises ``ConfigError``."""
    if shared := sorted(_SAME_FOR_ALL_MODELS & set(choice.train)):
        raise ConfigError(
            f"aggregate.models: {choice.label}: train.{shared[0]} is the same for all models; set it in train:"
        )
    own = {**RECIPES.get(str(choice.train.get("recipe", "default")), {}), **choice.train}
    try:
        return TrainConfig.model_validate({**section.model_dump(exclude_unset=True), **own})
    except ValidationError as error:
        raise ConfigError(f"aggregate.models: {choice.label}: train: {_one_line(error)}") from error
