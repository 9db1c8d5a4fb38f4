"""``wsi embed``: the grid of each slide becomes a bag of features."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Provenance, content_key, read_key
from ..config import EmbedConfig
from ..device import pick_device
from ..engine import Job, JobStats, cores
from ..errors import ArtifactError, SlideError
from ..project import Project
from ..read import Batch
from ..store import BagWriter, read_grid
from ..types import SlideRow
from . import encoders, from_features
from .encoder_runner import EncoderRunner
from .encoding import encode_batches, stored
from .identity import identity, recommended_mpp
from .prefetch import Patches, SlidePrefetcher, SlideRequest, open_patches

_MPP_TOLERANCE = 0.1
_log = logging.getLogger("wsi_pipeline")


@dataclass(frozen=True)
class Task:
    """All inputs of embedding one slide; sent to the process that does it."""

    request: SlideRequest
    embed: EmbedConfig
    encoder: Mapping[str, Any]  # the identity that the key was made with


def jobs(project: Project, slides: Sequence[SlideRow]) -> Iterator[list[Job]]:
    """Write ``embed/<slide_id>.h5`` for every slide; ``slides``: those that have a grid."""
    make = _jobs if project.config.embed.import_ is None else from_features.jobs
    yield make(project, slides) if slides else []


def _jobs(project: Project, slides: Sequence[SlideRow]) -> list[Job]:
    read, embed = project.config.read, project.config.embed
    chosen = (embed.encoder, embed.weights, embed.pretrained, embed.encoder_options)
    encoder = identity(*chosen)
    _warn_of_mpp(embed.encoder, recommended_mpp(*chosen), project.folder.grid(slides[0].slide_id))
    facts = {"config": _result(embed), "read": read.for_key(), "encoder": encoder}
    requests = [SlideRequest(row, project.folder.grid(row.slide_id), read) for row in slides]
    # Only where one process does all the slides is it known which one it does next.
    serial = project.config.engine.kind == "serial"
    following = [request if serial else None for request in requests[1:]] + [None]
    made = []
    for request, after in zip(requests, following, strict=True):
        key = content_key(stage="embed", upstream=read_key(request.grid), **facts)
        name, task = request.row.slide_id, Task(request, embed, encoder)
        provenance = Provenance.of(key, "embed", **facts)
        made.append(Job(name, project.folder.bag(name), provenance, embed_slide, (task, after)))
    return made


def embed_slide(task: Task, following: SlideRequest | None, *, output: Path, provenance: Provenance) -> JobStats:
    """Write one slide's bag; returns the number of its patches.

    ``following``: the slide that this process does next. Raises ``ArtifactError`` where this process finds other
    weights of the encoder than the run began with.
    """
    embed, encoder = task.embed, task.encoder
    forward = runner_of(embed.model_dump_json(), str(encoder["weights"]))
    if forward.encoder.weights_digest != encoder["weights"]:
        raise ArtifactError(
            f"this worker has other weights for {embed.encoder} than the run began with; copy them to this machine"
        )
    begin = functools.partial(open_patches, runner=forward, embed=embed)
    with _prefetcher().take(task.request, begin) as patches:
        side_px = forward.encoder.side_px
        made = provenance.with_facts(
            reader=patches.slide.reader,
            recommended_mpp=forward.encoder.recommended_mpp,
            resized_to_px=None if side_px == patches.grid.side_px else side_px,
        )

        def when_read() -> None:
            if following is not None:
                _prefetcher().begin(following, begin)

        return write_bag(output, patches, forward, embed, made, when_read)


def write_bag(
    path: Path,
    patches: Patches,
    forward: EncoderRunner,
    embed: EmbedConfig,
    provenance: Provenance,
    when_read: Callable[[], None] = lambda: None,
) -> JobStats:
    """Encode ``patches`` and write them as a bag. Returns how many could be read, and how long the device waited.

    ``when_read`` is called when the last patch has been read, while the device may still be busy. Raises
    ``SlideError`` where no patch could be read, or where a feature is not finite.
    """
    grid = patches.grid
    threads = (embed.threads or cores()) if forward.device.type == "cpu" else 1
    encoded = encode_batches(_then(patches.batches, when_read), forward, threads)
    readable = np.zeros(len(grid), bool)
    start, busy_s, begin = 0, 0.0, time.perf_counter()
    with BagWriter(path, grid, forward.encoder.dim, embed.dtype) as bag, contextlib.closing(encoded):
        for mask, features, seconds in encoded:
            busy_s += seconds
            stop = start + len(mask)
            readable[start:stop] = mask
            if mask.any():
                bag.append(stored(features, embed.dtype, grid.slide_id, grid.xy_px0[start:stop][mask]))
            start = stop
        worked_s = time.perf_counter() - begin
        if not readable.any():
            raise SlideError(f"{patches.slide.path}: none of its {len(grid)} patches can be read; the file is damaged")
        bag.finish(readable, forward.encoder.name, forward.encoder.weights_digest, provenance)
    return JobStats(int(readable.sum()), worked_s, max(0.0, worked_s - busy_s / threads))


def _then(batches: Iterable[Batch], after: Callable[[], None]) -> Iterator[Batch]:
    yield from batches
    after()


@functools.lru_cache(maxsize=1)
def _prefetcher() -> SlidePrefetcher:
    """The prefetcher of this process."""
    return SlidePrefetcher()


@functools.lru_cache(maxsize=1)
def runner_of(config: str, weights: str) -> EncoderRunner:  # noqa: ARG001  (other weights, another encoder)
    """The encoder of this process, built at its first slide; ``config``: the section as JSON, ``weights``: digest."""
    embed = EmbedConfig.model_validate_json(config)
    device = pick_device(embed.device)
    encoder = encoders.build(embed.encoder, embed.weights, embed.pretrained, **embed.encoder_options)
    return EncoderRunner(encoder, device, embed)


def _result(embed: EmbedConfig) -> dict[str, Any]:
    """The part of the section that decides the features. The weights count by their digest, not by their path."""
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
