"""The plan of a study: encoders x models x seeds from its YAML, and the config of each run. Runs nothing.

    OUT/slides.csv                          the manifest
    OUT/<encoder>/bags/                     tile/ and embed/, once per encoder
    OUT/<encoder>/<model>/seed<seed>/       a run folder; its tile/ and embed/ are links to those of bags/
    OUT/summary.csv, summary.md             the summary of all runs

The file ``<folder>.yaml`` beside each of these folders is its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from ..config import AggregateConfig, Options, Section, build_config
from ..errors import ConfigError


class EncoderChoice(Section):
    """One encoder of a study, and the config keys that differ for it."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="folder name")
    embed: Options = Field(default_factory=dict)
    tile: Options = Field(default_factory=dict, description="e.g. the patch side that the encoder was trained with")


class StudyConfig(Section):
    """A study's config.yaml."""

    data: Path = Field(description="the folder of the download")
    out: Path = Field(description="the folder of the study's results")
    manifest: Options = Field(default_factory=dict, description="options of `wsi manifest`")
    encoders: tuple[EncoderChoice, ...] = Field(min_length=1)
    models: AggregateConfig = Field(description="as in aggregate.models of a run")
    seeds: tuple[int, ...] = Field(min_length=1)
    explain_seeds: tuple[int, ...] = Field((), description="seeds whose models are explained")
    view_seeds: tuple[int, ...] = Field((), description="of these, the seeds that get heatmaps and a report")
    settings: Options = Field(default_factory=dict, description="sections of the config, the same for all runs")
    threads: dict[str, int] = Field(default_factory=dict, description="cores of each rule, by its name")

    @field_validator("models", mode="before")
    @classmethod
    def _models(cls, value: Any) -> Any:
        return {"models": value}


@dataclass(frozen=True)
class Study:
    """A validated study: folders and configs of its runs."""

    config: StudyConfig

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Study:
        """Validate a study's YAML, the configs of its runs included; ``ConfigError`` names the key in one line."""
        try:
            study = cls(StudyConfig.model_validate(dict(data)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "config"
            raise ConfigError(f"the study's config: {where}: {first['msg']}") from error
        study._check()
        return study

    @property
    def encoders(self) -> tuple[str, ...]:
        return tuple(choice.id for choice in self.config.encoders)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(choice.label for choice in self.config.models.models)

    @property
    def runs(self) -> tuple[tuple[str, str, int], ...]:
        """(encoder, model, seed) of every run."""
        return tuple((e, m, s) for e in self.encoders for m in self.models for s in self.config.seeds)

    def bags_yaml(self, encoder: str) -> str:
        """The config that tiles and embeds for one encoder: the text of OUT/<encoder>/bags.yaml."""
        return _yaml({"slides": "../slides.csv", "out": "bags", **self._sections(encoder)})

    def run_yaml(self, encoder: str, model: str, seed: int) -> str:
        """The config of one run: the text of OUT/<encoder>/<model>/seed<seed>.yaml."""
        sections = self._sections(encoder)
        choice = next(c for c in self.config.models.models if c.label == model)
        sections["aggregate"] = {"models": [choice.model_dump(mode="json", exclude_defaults=True)]}
        sections["train"] = {**sections.get("train", {}), "seeds": [seed]}
        return _yaml({"slides": "../../slides.csv", "out": f"seed{seed}", **sections})

    def _sections(self, encoder: str) -> dict[str, Any]:
        choice = next(c for c in self.config.encoders if c.id == encoder)
        own = {"embed": choice.embed, "tile": choice.tile}
        given = dict(self.config.settings)
        return given | {name: {**given.get(name, {}), **part} for name, part in own.items() if part}

    def _check(self) -> None:
        for name in ("slides", "out", "aggregate"):
            if name in self.config.settings:
                raise ConfigError(f"the study's config: settings.{name}: it is set by the study; remove it")
        for what, seeds in (("explain_seeds", self.config.explain_seeds), ("view_seeds", self.config.view_seeds)):
            among = self.config.seeds if what == "explain_seeds" else self.config.explain_seeds
            if other := sorted(set(seeds) - set(among)):
                raise ConfigError(f"the study's config: {what}: {other[0]} is not among {list(among)}")
        if len(set(self.encoders)) < len(self.encoders):
            raise ConfigError("the study's config: encoders: two have the same id; give each a different one")
        texts = [self.bags_yaml(encoder) for encoder in self.encoders] + [self.run_yaml(*run) for run in self.runs]
        for text in texts:
            build_config(yaml.safe_load(text), [], base=Path(), source="the study's config")


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
