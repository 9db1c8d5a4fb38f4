"""Batches stream through the encoder, in the grid's order; nothing is written on the way.

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

from ..errors import SlideError
from ..read import Batch
from ..types import Bool, Float32, Int64, UInt8
from .encoder_runner import Pending, one_thread, own_threads

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Encoded(NamedTuple):
    """The features of one batch, where the device may still be at work."""

    readable: Bool  # (n,)
    features: Pending | None  # of the readable ones; None: there is none


class Done(NamedTuple):
    """The features of one batch, on the CPU."""

    readable: Bool  # (n,)
    features: Float32  # (m, dim); (0, 0) where no patch was readable
    busy_s: float  # how long the device worked on them


def encoding_ahead(threads: int) -> int:
    """The most batches that are with the encoder at once."""
    return threads + 2


def encode_batches(
    batches: Iterable[Batch], encode: Callable[[UInt8], Pending], threads: int
) -> Generator[Done, None, None]:
    """Each batch encoded, in order. Close the iterator to stop the threads early."""
    with own_threads(), _pool(threads, one_thread) as encoders:
        for done in _ordered(encoders, lambda batch: _encode(encode, batch), batches, encoding_ahead(threads)):
            if done.features is None:
                yield Done(done.readable, np.zeros((0, 0), np.float32), 0.0)
            else:
                yield Done(done.readable, done.features.result(), done.features.busy_s())


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
