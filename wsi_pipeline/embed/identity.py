"""The identity of an encoder, found without building it: what the content key of a bag depends on."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import Encoder, encoders
from .weights import Source, digest, locate


def identity(name: str, weights: Path | None, pretrained: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Identify an encoder by its name, options and weights.

    Published weights are downloaded if they are not on this machine. A plug-in of another package that does not
    declare the location of its weights is built to find their digest.

    Parameters
    ----------
    name : str
        Registered name, or ``package.module:function``.
    weights : Path, optional
        Local weights file.
    pretrained : bool
        Whether to use weights at all; False: random ones.
    options : mapping
        The encoder's options.

    Returns
    -------
    dict
        ``name``, ``options``, and ``weights``: the sha256 of the weights file, or ``random``.
    """
    source = _source(name)
    if source is None:
        found = _outside(name, weights, pretrained, json.dumps(dict(options), sort_keys=True)).weights_digest
    else:
        found = digest(locate(source, weights, pretrained))
    return {"name": name, "options": dict(options), "weights": found}


def recommended_mpp(name: str, weights: Path | None, pretrained: bool, options: Mapping[str, Any]) -> float:
    """µm per pixel from the encoder's options, else as it declares."""
    declared = options.get("recommended_mpp", encoders.entry(name).info.get("recommended_mpp"))
    if declared is None:
        return _outside(name, weights, pretrained, json.dumps(dict(options), sort_keys=True)).recommended_mpp
    return float(declared)


def cached_weights(name: str) -> Path | None:
    """The published weights of an encoder if they are on this machine; looks at the disk only."""
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
