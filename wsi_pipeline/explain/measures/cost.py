"""Cost of a call: seconds, and peak memory in addition to what was allocated before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import psutil
import torch

T = TypeVar("T")
_EVERY_S = 0.002


class Cost(NamedTuple):
    """Cost of one call on this machine; not reproducible."""

    seconds: float
    peak_bytes: int


def measured(call: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    """Result of ``call``, and its cost.

    Memory: on CUDA, the peak of torch's allocations on the device. Elsewhere the peak of the process's resident memory,
    sampled every 2 ms: memory that the allocator kept from an earlier call is not counted, so small numbers are a lower
    bound.
    """
    if device.type == "cuda":
        return _on_cuda(call, device)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(_EVERY_S):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    begin = time.perf_counter()
    try:
        result = call()
        seconds = time.perf_counter() - begin
    finally:
        done.set()
        sampler.join()
    return result, Cost(seconds, max(peak, process.memory_info().rss) - before)


def _on_cuda(call: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, begin = torch.cuda.memory_allocated(device), time.perf_counter()
    result = call()
    torch.cuda.synchronize(device)
    return result, Cost(time.perf_counter() - begin, torch.cuda.max_memory_allocated(device) - before)
