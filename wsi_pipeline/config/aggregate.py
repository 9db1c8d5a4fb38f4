"""The config section ``aggregate``: the MIL models."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from .base import Options, Section


class ModelChoice(Section):
    """One MIL model to train, and its options."""

    name: str
    options: Options = Field(default_factory=dict)
    id: str = Field(
        default="", pattern=r"^[A-Za-z0-9_-]*$", description="folder name, for a model that is listed twice"
    )
    train: Options = Field(
        default_factory=dict, description="keys of the train section that differ for this model, e.g. {recipe: clam}"
    )

    @property
    def label(self) -> str:
        """The model's name in paths and tables."""
        return self.id or self.name.replace(":", "-").replace(".", "-")


class AggregateConfig(Section):
    """The MIL models that are trained, all on the same folds."""

    models: tuple[ModelChoice, ...] = Field(
        default=(ModelChoice(name="abmil"),),
        min_length=1,
        description="MIL models to train: names (see `wsi list models`), or {name, options, id, train}",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """``models: [abmil, transmil]`` is short for a list of ``{name: …}``."""
        values = [value] if isinstance(value, (str, dict)) else value
        return [{"name": v} if isinstance(v, str) else v for v in values] if isinstance(values, list) else values

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: tuple[ModelChoice, ...]) -> tuple[ModelChoice, ...]:
        labels = [m.label for m in value]
        if len(set(labels)) < len(labels):
            raise ValueError("two models have the same name; give each its own id")
        return value
