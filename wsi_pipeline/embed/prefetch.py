"""Prefetch of the next slide: opened, and its first patches read, while the device encodes the last of this one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..config import EmbedConfig, ReadConfig
from ..engine import cores
from ..errors import WsiError
from ..read import Batches, open_slide, read_batches
from ..store import read_grid
from ..types import PatchGrid, Slide, SlideRow
from .encoder_runner import EncoderRunner


@dataclass(frozen=True)
class SlideRequest:
    """The patches of one slide, before anything is opened."""

    row: SlideRow
    grid: Path
    read: ReadConfig


@dataclass(frozen=True, eq=False)
class Patches:
    """An open slide whose patches are being read; a context manager."""

    slide: Slide
    grid: PatchGrid
    batches: Batches

    @classmethod
    def of(
        cls, slide: Slide, grid: PatchGrid, runner: EncoderRunner, embed: EmbedConfig, scaling: str = "exact"
    ) -> Self:
        """Start reading the patches of ``grid`` into memory that suits the device; ``scaling``: see ``ReadConfig``."""
        threads = embed.read_threads or (2 if runner.device.type == "cpu" else cores())
        batches = read_batches(
            slide,
            grid,
            batch=embed.batch,
            threads=threads,
            scaling=scaling,
            tile_cache_mb=embed.tile_cache_mb,
            allocate=runner.allocate,
        )
        return cls(slide, grid, batches)

    def close(self) -> None:
        """Stop reading and close the slide."""
        self.batches.close()
        self.slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_patches(request: SlideRequest, runner: EncoderRunner, embed: EmbedConfig) -> Patches:
    """Open the slide and start reading its patches."""
    grid, _ = read_grid(request.grid)
    with contextlib.ExitStack() as stack:
        slide = stack.enter_context(open_slide(request.row.path, request.read, request.row.mpp))
        patches = Patches.of(slide, grid, runner, embed, request.read.scaling)
        stack.pop_all()  # from here on closing the patches closes the slide
    return patches


class SlidePrefetcher:
    """Opens one slide in a thread before it is needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[SlideRequest, Future[Patches]] | None = None

    def begin(self, request: SlideRequest, open_: Callable[[SlideRequest], Patches]) -> None:
        """Open the slide of ``request`` in a thread; one that was opened before and not taken is closed."""
        self._drop()
        self._next = request, self._pool.submit(open_, request)

    def take(self, request: SlideRequest, open_: Callable[[SlideRequest], Patches]) -> Patches:
        """The patches of ``request``, prefetched or opened now; raises an error that prefetching raised."""
        if self._next is not None and self._next[0] == request:
            future = self._next[1]
            self._next = None
            return future.result()
        self._drop()
        return open_(request)

    def _drop(self) -> None:
        if self._next is not None:
            with contextlib.suppress(WsiError):
                self._next[1].result().close()
            self._next = None
