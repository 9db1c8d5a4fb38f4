"""Memory that is used again and again: a fresh array costs a page fault every 4 KB, and is in no cache."""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np

from ..types import UInt8


def tile_memory(shape: tuple[int, ...]) -> UInt8:
    """An array that tiles are decoded into.

    It begins 16 bytes off a multiple of 32: where a row is aligned, libjpeg-turbo writes it past the processor's
    cache, and both it and who reads the tile next are slower.
    """
    count = math.prod(shape)
    memory = np.empty(count + 31, np.uint8)
    first = (16 - memory.ctypes.data) % 32
    return memory[first : first + count].reshape(shape)


class Scratch(threading.local):
    """Memory of each thread."""

    def __init__(self) -> None:
        self._held = tile_memory((0,))

    def array(self, shape: tuple[int, int, int]) -> UInt8:
        """An array of this thread, until its next call."""
        count = math.prod(shape)
        if len(self._held) < count:
            self._held = tile_memory((count,))
        return self._held[:count].reshape(shape)


class Recycled:
    """Makes arrays; the memory of one that nobody holds any more, nor a view of it, goes to the next.

    One thread makes them; any may be the last to hold one.
    """

    def __init__(self) -> None:
        self._free: list[UInt8] = []

    def __call__(self, shape: tuple[int, ...]) -> UInt8:
        """An array with anything in it."""
        count = math.prod(shape)
        memory = self._free.pop() if self._free else np.empty(count, np.uint8)
        if len(memory) < count:
            memory = np.empty(count, np.uint8)
        array = np.frombuffer(memory.data, np.uint8, count)  # views of it hold it, and not the memory alone
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)
