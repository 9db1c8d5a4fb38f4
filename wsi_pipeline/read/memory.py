"""Reused memory: a new array costs a page fault per 4 KB, and is not in the processor's cache."""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np

from ..types import UInt8


def tile_memory(shape: tuple[int, ...]) -> UInt8:
    """Create an uninitialised uint8 array of ``shape`` for decoded tiles.

    It begins 16 bytes after a multiple of 32: libjpeg-turbo writes aligned rows past the processor's cache, which
    slows down both the decoder and the next reader of the tile.
    """
    count = math.prod(shape)
    memory = np.empty(count + 31, np.uint8)
    first = (16 - memory.ctypes.data) % 32
    return memory[first : first + count].reshape(shape)


class Scratch(threading.local):
    """Scratch memory of each thread."""

    def __init__(self) -> None:
        self._memory = tile_memory((0,))

    def array(self, shape: tuple[int, int, int]) -> UInt8:
        """An uninitialised uint8 array of this thread, valid until its next call."""
        count = math.prod(shape)
        if len(self._memory) < count:
            self._memory = tile_memory((count,))
        return self._memory[:count].reshape(shape)


class Recycled:
    """Creates arrays; the memory of an array without remaining references, views included, is used again.

    One thread creates the arrays; the last reference may be dropped by any thread.
    """

    def __init__(self) -> None:
        self._free: list[UInt8] = []

    def __call__(self, shape: tuple[int, ...]) -> UInt8:
        """An uninitialised uint8 array of ``shape``."""
        count = math.prod(shape)
        memory = self._free.pop() if self._free else np.empty(count, np.uint8)
        if len(memory) < count:
            memory = np.empty(count, np.uint8)
        array = np.frombuffer(memory.data, np.uint8, count)  # its views reference it, and not only the memory
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)
