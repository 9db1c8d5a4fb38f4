"""What a call costs: seconds, and how much memory it took at its peak beyond what was taken before."""

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
    """Of one call on this machine; never the same twice."""

    seconds: float
    peak_bytes: int


def measured(call: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    """What ``call`` gives, and its cost.

    Memory: on CUDA, the peak of what torch had allocated on the device. Elsewhere the peak of the process's resident
    memory, looked at every 2 ms: memory that an earlier call left to the allocator is not seen again, so small numbers
    are a lower bound.
    """
    if device.type == "cuda":
        return _on_cuda(call, device)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(_EVERY_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin = time.perf_counter()
    try:
        result = call()
        seconds = time.perf_counter() - begin
    finally:
        over.set()
        watcher.join()
    return result, Cost(seconds, max(peak, process.memory_info().rss) - before)


def _on_cuda(call: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, begin = torch.cuda.memory_allocated(device), time.perf_counter()
    result = call()
    torch.cuda.synchronize(device)
    return result, Cost(time.perf_counter() - begin, torch.cuda.max_memory_allocated(device) - before)
