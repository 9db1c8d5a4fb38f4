"""Memory is used again, and never while it is still referenced."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wsi_pipeline.read.memory import Recycled, Scratch, tile_memory
from wsi_pipeline.types import UInt8


def address(array: UInt8) -> int:
    return int(array.ctypes.data)


def test_memory_is_used_again_once_it_is_unreferenced() -> None:
    allocate = Recycled()
    first = allocate((4, 8, 8, 3))
    first[:] = 1
    where = address(first)
    del first
    gc.collect()
    second = allocate((2, 8, 8, 3))  # a last batch is smaller
    assert (address(second), second.shape) == (where, (2, 8, 8, 3))


def test_a_view_keeps_the_memory_as_the_array_does() -> None:
    allocate = Recycled()
    views = [allocate((4, 8, 8, 3))[1:3, ::2].reshape(-1, 3)[5:] for _ in range(3)]
    for i, view in enumerate(views):
        view[:] = i
    gc.collect()
    allocate((4, 8, 8, 3))[:] = 255
    assert [view.min() for view in views] == [view.max() for view in views] == [0, 1, 2]


def test_memory_that_is_too_small_is_not_used() -> None:
    allocate = Recycled()
    allocate((1, 2, 2, 3))
    gc.collect()
    large = allocate((5, 2, 2, 3))
    large[:] = 7
    assert large.shape == (5, 2, 2, 3)


def test_each_thread_has_its_own_scratch_memory() -> None:
    scratch = Scratch()
    mine = scratch.array((4, 4, 3))
    assert address(scratch.array((2, 4, 3))) == address(mine)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(scratch.array, (4, 4, 3)).result()
    assert not np.shares_memory(mine, other)


@pytest.mark.parametrize("side", [1, 16, 128, 240, 256])
def test_no_tile_begins_where_libjpeg_turbo_would_bypass_the_cache(side: int) -> None:
    tiles = [tile_memory((side, side, 3)) for _ in range(20)]
    assert {address(tile) % 32 for tile in tiles} == {16}
    assert all(tile.flags.c_contiguous and tile.shape == (side, side, 3) for tile in tiles)
