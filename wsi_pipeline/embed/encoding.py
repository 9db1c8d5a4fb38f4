"""Stream batches through the encoder in the grid's order, without intermediate files.

Threads read ahead, other threads encode, and both queues are bounded: memory depends on the batch and the number of
threads, never on the slide. On a CPU each encoding thread computes whole batches alone, so the result is the same to
the bit for any number of threads and cores.
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
    """The features of one batch, which the device may still be computing."""

    readable: Bool  # (n,)
    features: Pending | None  # of the readable patches; None if there are none


class Done(NamedTuple):
    """The features of one batch, on the CPU.

    Attributes
    ----------
    readable : ndarray of bool, (n,)
        Which of the n patches could be read.
    features : ndarray of float32, (m, dim)
        Features of the m readable patches; (0, 0) if there are none.
    busy_s : float
        Compute time in seconds.
    """

    readable: Bool  # (n,)
    features: Float32  # (m, dim)
    busy_s: float


def encoding_depth(threads: int) -> int:
    """The most batches that are in the encoder's queue at once."""
    return threads + 2


def encode_batches(
    batches: Iterable[Batch], encode: Callable[[UInt8], Pending], threads: int
) -> Generator[Done, None, None]:
    """Encode batches in order. Close the iterator to stop the threads early.

    Parameters
    ----------
    batches : iterable of Batch
        Patches, for example from ``read_batches``.
    encode : callable
        Starts to encode patches (n, s, s, 3), for example an ``EncoderRunner``.
    threads : int
        Threads that encode.

    Yields
    ------
    Done
        The features of each batch.
    """
    with own_threads(), _pool(threads, one_thread) as encoders:
        for done in _ordered(encoders, lambda batch: _encode(encode, batch), batches, encoding_depth(threads)):
            if done.features is None:
                yield Done(done.readable, np.zeros((0, 0), np.float32), 0.0)
            else:
                yield Done(done.readable, done.features.result(), done.features.busy_s())


def stored(features: Float32, dtype: str, slide_id: str, xy_px0: Int64) -> np.ndarray:
    """Convert features to the stored type.

    Parameters
    ----------
    features : ndarray of float32, (m, dim)
        Features of m patches.
    dtype : {"float16", "float32"}
        Type of the bag.
    slide_id : str
        The slide, for the error message.
    xy_px0 : ndarray of int64, (m, 2)
        Top-left corners of the patches in level-0 pixels, for the error message.

    Returns
    -------
    ndarray, (m, dim)
        The features in ``dtype``.

    Raises
    ------
    SlideError
        A feature is not a finite number; names the first such patch.
    """
    with np.errstate(over="ignore"):  # checked below
        result = features.astype(dtype)
    bad = ~np.isfinite(result).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        x, y = xy_px0[row].tolist()
        where = f"{slide_id}: the encoder's features of the patch at ({x}, {y})"
        if np.isfinite(features[row]).all():
            raise SlideError(f"{where} are too large for {dtype}; --set embed.dtype=float32")
        raise SlideError(f"{where} contain NaN or infinity; --set embed.precision=fp32, or check the weights")
    return result


def _encode(encode: Callable[[UInt8], Pending], batch: Batch) -> Encoded:
    return Encoded(batch.readable, encode(batch.pixels) if len(batch.pixels) else None)


def _ordered(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], depth: int
) -> Iterator[_Out]:
    """``map`` over threads, in order, with at most ``depth`` pending items."""
    pending: deque[Future[_Out]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) == depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def _pool(threads: int, initializer: Callable[[], None] | None = None) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, initializer=initializer)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
