"""Where the work runs."""

from __future__ import annotations

from typing import Literal

from .base import Section, runtime


class EngineConfig(Section):
    """Where the work runs. Never changes a result."""

    kind: Literal["serial", "local", "cluster"] = runtime(
        "serial", "serial; local: worker processes; cluster: a Dask scheduler"
    )
    workers: int = runtime(0, "local: worker processes; 0: one for every two cores", ge=0)
    address: str | None = runtime(None, "cluster: tcp://host:port of the Dask scheduler")
