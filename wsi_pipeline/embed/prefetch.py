"""The next slide is opened, and its first patches are read, while the device is busy with the last ones of this one."""

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
        cls, slide: Slide, grid: PatchGrid, forward: EncoderRunner, embed: EmbedConfig, scaling: str = "exact"
    ) -> Self:
        """Begin to read the patches of ``grid`` into memory that suits the device; ``scaling``: see ``ReadConfig``."""
        threads = embed.read_threads or (2 if forward.device.type == "cpu" else cores())
        batches = read_batches(
            slide,
            grid,
            batch=embed.batch,
            threads=threads,
            scaling=scaling,
            tile_cache_mb=embed.tile_cache_mb,
            allocate=forward.allocate,
        )
        return cls(slide, grid, batches)

    def close(self) -> None:
        """Stop reading and give the file back."""
        self.batches.close()
        self.slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_patches(wanted: SlideRequest, forward: EncoderRunner, embed: EmbedConfig) -> Patches:
    """Open the slide and begin to read."""
    grid, _ = read_grid(wanted.grid)
    with contextlib.ExitStack() as stack:
        slide = stack.enter_context(open_slide(wanted.row.path, wanted.read, wanted.row.mpp))
        patches = Patches.of(slide, grid, forward, embed, wanted.read.scaling)
        stack.pop_all()  # from here on the patches close it
    return patches


class SlidePrefetcher:
    """Holds the one slide that is being opened before its turn."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[SlideRequest, Future[Patches]] | None = None

    def begin(self, wanted: SlideRequest, open_: Callable[[SlideRequest], Patches]) -> None:
        """Open ``wanted`` in a thread. What was opened before and not taken is closed."""
        self._drop()
        self._next = wanted, self._pool.submit(open_, wanted)

    def take(self, wanted: SlideRequest, open_: Callable[[SlideRequest], Patches]) -> Patches:
        """The patches of ``wanted``: those that were begun, or opened now. Raises what opening raised."""
        if self._next is not None and self._next[0] == wanted:
            future = self._next[1]
            self._next = None
            return future.result()
        self._drop()
        return open_(wanted)

    def _drop(self) -> None:
        if self._next is not None:
            with contextlib.suppress(WsiError):
                self._next[1].result().close()
            self._next = None
