"""``wsi embed``: the grid of each slide becomes a bag of features."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import EmbedConfig, ReadConfig
from ..engine import Engine, Job, cores
from ..errors import ArtifactError, SlideError
from ..files import Provenance, content_key, read_key
from ..project import Project
from ..read import open_slide, patch_level, read_patch
from ..store import BagWriter, read_grid
from ..types import PatchGrid, Slide, SlideRow
from . import encoders, imported
from .device import pick_device
from .forward import Forward
from .identity import identity, recommended_mpp
from .stream import Read, stored, stream

_MPP_TOLERANCE = 0.1
_log = logging.getLogger("wsi_pipeline")


def run(project: Project, engine: Engine) -> None:
    """Write ``embed/<slide_id>.h5`` for every slide that has a grid and no current bag."""
    slides = engine.ready("embed", project.slides, project.folder.grid, "tile")
    make = _jobs if project.config.embed.import_ is None else imported.jobs
    jobs = make(project, slides) if slides else []
    engine.run("embed", jobs, device=project.config.embed.device)


def _jobs(project: Project, slides: list[SlideRow]) -> list[Job]:
    read, embed = project.config.read, project.config.embed
    chosen = (embed.encoder, embed.weights, embed.pretrained, embed.encoder_options)
    encoder = identity(*chosen)
    _warn_of_mpp(embed.encoder, recommended_mpp(*chosen), project.folder.grid(slides[0].slide_id))
    jobs = []
    for row in slides:
        grid, bag = project.folder.grid(row.slide_id), project.folder.bag(row.slide_id)
        key = content_key(
            stage="embed", config=_result(embed), read=read.for_key(), upstream=read_key(grid), encoder=encoder
        )
        jobs.append(Job(row.slide_id, bag, key, embed_slide, (row, grid, bag, read, embed, encoder, key)))
    return jobs


def embed_slide(
    row: SlideRow,
    grid_path: Path,
    bag_path: Path,
    read: ReadConfig,
    embed: EmbedConfig,
    encoder: Mapping[str, Any],
    key: str,
) -> int:
    """Write one slide's bag; the number of its patches. ``encoder``: the identity that ``key`` was made with."""
    forward = _forward(embed.model_dump_json(), str(encoder["weights"]))
    if forward.encoder.weights_digest != encoder["weights"]:
        raise ArtifactError(
            f"this worker has other weights for {embed.encoder} than the run began with; bring them over"
        )
    grid, _ = read_grid(grid_path)
    facts = {
        "config": _result(embed),
        "read": read.for_key(),
        "encoder": dict(encoder),
        "recommended_mpp": forward.encoder.recommended_mpp,
        "resized_to_px": None if forward.encoder.side_px == grid.side_px else forward.encoder.side_px,
    }
    with open_slide(row.path, read, row.mpp) as slide:
        return write_bag(bag_path, slide, grid, forward, embed, Provenance.of(key, "embed", **facts))


def write_bag(
    path: Path, slide: Slide, grid: PatchGrid, forward: Forward, embed: EmbedConfig, provenance: Provenance
) -> int:
    """Encode the patches of ``grid`` and write them as a bag; how many could be read.

    Raises ``SlideError`` where none could, or where a feature is no finite number.
    """
    threads = (embed.threads or cores()) if forward.device.type == "cpu" else 1
    batches = stream(
        grid, _reader(slide, grid), forward, batch=embed.batch, threads=threads, read_threads=embed.read_threads
    )
    readable = np.zeros(len(grid), bool)
    start = 0
    with BagWriter(path, grid, forward.encoder.dim, embed.dtype) as bag, contextlib.closing(batches):
        for mask, features in batches:
            stop = start + len(mask)
            readable[start:stop] = mask
            if mask.any():
                bag.append(stored(features, embed.dtype, grid.slide_id, grid.xy_px0[start:stop][mask]))
            start = stop
        if not readable.any():
            raise SlideError(f"{slide.path}: none of its {len(grid)} patches can be read; the file is damaged")
        bag.finish(readable, forward.encoder.name, forward.encoder.weights_digest, provenance)
    return int(readable.sum())


def _reader(slide: Slide, grid: PatchGrid) -> Read:
    level = patch_level(slide, grid)
    return lambda xy_px0: read_patch(slide, xy_px0, grid.side_px0, grid.side_px, level)


@functools.lru_cache(maxsize=1)
def _forward(config: str, weights: str) -> Forward:  # noqa: ARG001  (other weights, another encoder)
    """The encoder of this process, built at its first slide; ``config``: the section as JSON, ``weights``: digest."""
    embed = EmbedConfig.model_validate_json(config)
    device = pick_device(embed.device)
    encoder = encoders.build(embed.encoder, embed.weights, embed.pretrained, **embed.encoder_options)
    return Forward(encoder, device, embed)


def _result(embed: EmbedConfig) -> dict[str, Any]:
    """What of the section decides the features. The weights count by their digest, wherever the file lies."""
    return {name: value for name, value in embed.for_key().items() if name != "weights"}


def _warn_of_mpp(encoder: str, recommended: float, grid_path: Path) -> None:
    grid, _ = read_grid(grid_path)
    if abs(grid.target_mpp / recommended - 1) > _MPP_TOLERANCE:
        _log.warning(
            "the slides are tiled at %g µm/px, but the encoder %s is made for %g; --set tile.mpp=%g unless you mean it",
            grid.target_mpp,
            encoder,
            recommended,
            recommended,
        )
