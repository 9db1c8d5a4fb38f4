"""What an encoder is, said without building it: enough for the key of a bag."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import Encoder, encoders
from .weights import Source, digest, locate


def identity(name: str, weights: Path | None, pretrained: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Name, options and the digest of the weights file; published weights are fetched where they are not here.

    A plug-in from outside that does not declare where its weights lie is built to learn their digest.
    """
    source = _source(name)
    if source is None:
        found = _outside(name, weights, pretrained, json.dumps(dict(options), sort_keys=True)).weights_digest
    else:
        found = digest(locate(source, weights, pretrained))
    return {"name": name, "options": dict(options), "weights": found}


def recommended_mpp(name: str, weights: Path | None, pretrained: bool, options: Mapping[str, Any]) -> float:
    """µm per pixel that the encoder declares, or that its options say."""
    declared = options.get("recommended_mpp", encoders.entry(name).info.get("recommended_mpp"))
    if declared is None:
        return _outside(name, weights, pretrained, json.dumps(dict(options), sort_keys=True)).recommended_mpp
    return float(declared)


def at_hand(name: str) -> Path | None:
    """The published weights of an encoder where they are on this machine; looks at the disk only."""
    source = None if name.endswith(":") else _source(name)
    return None if source is None else source.cached()


def _source(name: str) -> Source | None:
    entry = encoders.entry(name)
    where = entry.info.get("weights")
    if where is None:
        return None
    source: Source = where(name.partition(":")[2] if entry.name.endswith(":") else "")
    return source


@functools.lru_cache(maxsize=1)
def _outside(name: str, weights: Path | None, pretrained: bool, options: str) -> Encoder:
    return encoders.build(name, weights, pretrained, **json.loads(options))
