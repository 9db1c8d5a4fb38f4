"""Patches stream from the slide through the encoder, in the grid's order; nothing is written on the way.

Threads read ahead, threads encode, and both queues are bounded: what is in memory follows the batch and the number
of threads, never the slide. On a CPU each encoding thread takes whole batches and computes alone, so that neither
the number of threads nor the cores of the machine change a bit of the result.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from ..errors import RegionError, SlideError
from ..types import Bool, Float32, Int64, PatchGrid, UInt8
from .forward import Pending, one_thread, own_threads

Read = Callable[[tuple[int, int]], UInt8]  # corner in level-0 pixels -> (side_px, side_px, 3)
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Batch(NamedTuple):
    """Consecutive patches of the grid, as read."""

    readable: Bool  # (n,)
    pixels: UInt8  # (m, s, s, 3), the m readable ones


class Encoded(NamedTuple):
    """The features of one batch, where the device may still be at work."""

    readable: Bool  # (n,)
    features: Pending | None  # of the readable ones; None: there is none


def in_flight(threads: int, read_threads: int) -> int:
    """The most batches in memory at once."""
    return _reading(read_threads) + _encoding(threads)


def stream(
    grid: PatchGrid,
    read: Read,
    encode: Callable[[UInt8], Pending],
    *,
    batch: int,
    threads: int,
    read_threads: int,
) -> Generator[tuple[Bool, Float32], None, None]:
    """For each ``batch`` consecutive patches of ``grid``: which are readable (n,), and their features (m, dim).

    A patch whose pixels raise ``RegionError`` is left out; one batch without any gives no features, (0, 0).
    Close the iterator to stop the threads early.
    """
    corners = [grid.xy_px0[start : start + batch] for start in range(0, len(grid), batch)]
    with own_threads(), _pool(read_threads) as readers, _pool(threads, one_thread) as encoders:
        batches = _ordered(readers, lambda xy: read_batch(read, xy, grid.side_px), corners, _reading(read_threads))
        for done in _ordered(encoders, lambda b: _encode(encode, b), batches, _encoding(threads)):
            features = np.zeros((0, 0), np.float32) if done.features is None else done.features.result()
            yield done.readable, features


def read_batch(read: Read, xy_px0: Int64, side_px: int) -> Batch:
    """The patches at ``xy_px0`` (n, 2) that can be read, in their order."""
    pixels = np.empty((len(xy_px0), side_px, side_px, 3), np.uint8)  # (n, s, s, 3)
    readable = np.zeros(len(xy_px0), bool)
    count = 0
    for row, (x, y) in enumerate(xy_px0.tolist()):
        with contextlib.suppress(RegionError):  # listed in the bag as unreadable
            pixels[count] = read((x, y))
            readable[row] = True
            count += 1
    return Batch(readable, pixels[:count])


def stored(features: Float32, dtype: str, slide_id: str, xy_px0: Int64) -> np.ndarray:
    """``features`` (m, dim) in the type of the bag. Raises ``SlideError`` that names the first that is no number."""
    with np.errstate(over="ignore"):  # looked at below
        result = features.astype(dtype)
    bad = ~np.isfinite(result).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        x, y = xy_px0[row].tolist()
        where = f"{slide_id}: the encoder's features of the patch at ({x}, {y})"
        if np.isfinite(features[row]).all():
            raise SlideError(f"{where} are too large for {dtype}; --set embed.dtype=float32")
        raise SlideError(f"{where} hold NaN or infinity; --set embed.precision=fp32, or check the weights")
    return result


def _encode(encode: Callable[[UInt8], Pending], batch: Batch) -> Encoded:
    return Encoded(batch.readable, encode(batch.pixels) if len(batch.pixels) else None)


def _reading(read_threads: int) -> int:
    return read_threads + 1


def _encoding(threads: int) -> int:
    return threads + 2


def _ordered(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """``map`` over threads, in order, with at most ``ahead`` items taken that have not been given back."""
    waiting: deque[Future[_Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _pool(threads: int, initializer: Callable[[], None] | None = None) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, initializer=initializer)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
