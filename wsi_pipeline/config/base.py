"""The base of all sections: frozen, strict, and with the part that decides a result for the content key."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]  # strict, as YAML's true would count as 1
Options = dict[str, Any]


def runtime(default: Any, description: str, **rules: Any) -> Any:
    """A field that changes speed, never a result."""
    return Field(default=default, description=description, json_schema_extra={"runtime": True}, **rules)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values. Raises ``ValueError`` where one appears twice."""
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} appears twice")
    return values


def listed(value: Any) -> Any:
    """A single name is short for a list of one."""
    return (value,) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def for_key(self) -> dict[str, Any]:
        """What decides the result: every field that is not marked ``runtime``, JSON-ready."""
        fields = type(self).model_fields
        skip = {
            n for n, f in fields.items() if isinstance(f.json_schema_extra, dict) and "runtime" in f.json_schema_extra
        }
        return self.model_dump(mode="json", exclude=skip)
