"""An encoder on its device: from uint8 patches to float32 features."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..config import EmbedConfig
from ..device import autocast_type
from ..errors import ConfigError
from ..types import Float32, UInt8
from . import Encoder


@dataclass(frozen=True)
class Pending:
    """Features that a device may still be computing."""

    features: Tensor  # (n, dim) float32, on the CPU
    seconds: float = 0.0  # compute time of a CPU thread
    begun: torch.cuda.Event | None = None
    done: torch.cuda.Event | None = None

    def result(self) -> Float32:
        """Wait for the device; returns the features (n, dim)."""
        if self.done is not None:
            self.done.synchronize()
        array: Float32 = self.features.numpy()
        return array

    def busy_s(self) -> float:
        """Compute time in seconds. Call after ``result``."""
        if self.begun is None or self.done is None:
            return self.seconds
        return float(self.begun.elapsed_time(self.done)) / 1000


class EncoderRunner:
    """Run batches through an encoder. On a CPU several threads may call it at once; on a GPU only one may.

    On a GPU a call only queues its work (copies from and to pinned memory included), so that the next batch is
    prepared while the device computes.

    Parameters
    ----------
    encoder : Encoder
        The encoder; its module is moved to the device.
    device : torch.device
        Where to compute.
    config : EmbedConfig
        Precision, batch, memory layout and compilation.

    Raises
    ------
    ConfigError
        The device does not support the precision, the batch does not fit in its memory, or compilation fails.
    """

    def __init__(self, encoder: Encoder, device: torch.device, config: EmbedConfig) -> None:
        self.encoder = encoder
        self.device = device
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._autocast = autocast_type(config.precision, device)
        self._batch = config.batch
        # Some releases of torch cannot resize with antialiasing on MPS, so MPS inputs are resized on the CPU.
        self._prepared_on = torch.device("cpu") if device.type == "mps" else device
        self._mean, self._std = (
            torch.tensor(colour, device=self._prepared_on).mul(255).view(1, 3, 1, 1)
            for colour in (encoder.mean, encoder.std)
        )
        self._module: Callable[[Tensor], Tensor] = encoder.module.to(device).to(memory_format=self._layout)  # type: ignore[call-overload]
        self._compiled = config.compile
        if config.compile:
            # One fixed shape: with dynamic shapes, a kernel's result would depend on the slides before.
            self._module = cast(Callable[[Tensor], Tensor], torch.compile(self._module, dynamic=False))
            self._warm_up()

    def __call__(self, pixels: UInt8) -> Pending:
        """Encode patches (n, s, s, 3), n at most ``embed.batch``, as features (n, dim)."""
        count = len(pixels)
        if self._compiled and count < self._batch:
            pixels = np.concatenate([pixels, np.zeros((self._batch - count, *pixels.shape[1:]), np.uint8)])
        on_gpu = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        try:
            with on_gpu, torch.inference_mode():
                return self._timed(lambda: self._features(self._sent(pixels))[:count])
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{self._batch} patches at once do not fit into the memory of {self.device}; use a smaller embed.batch"
            ) from error

    @property
    def allocate(self) -> Callable[[tuple[int, ...]], UInt8] | None:
        """For a GPU, a function that allocates the arrays of batches in pinned memory; else None."""
        return _pinned if self.device.type == "cuda" else None

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 (B, s, s, 3) -> normalised input (B, 3, side, side), resized if s is not the encoder's side."""
        x = pixels.permute(0, 3, 1, 2).float()  # (B, 3, s, s)
        side = self.encoder.side_px
        if x.shape[-2:] != (side, side):
            x = functional.interpolate(
                x, (side, side), mode=self.encoder.interpolation, align_corners=False, antialias=True
            ).clamp(0, 255)  # (B, 3, side, side); bicubic overshoots
        return ((x - self._mean) / self._std).contiguous(memory_format=self._layout)

    def _features(self, pixels: Tensor) -> Tensor:
        enabled = self._autocast is not None
        x = self.prepare(pixels).to(self.device)
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=enabled):
            return self._module(x).float()

    def _sent(self, pixels: UInt8) -> Tensor:
        tensor = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            return pinned.to(self.device, non_blocking=True)
        return tensor.to(self._prepared_on)

    def _timed(self, features: Callable[[], Tensor]) -> Pending:
        """Run ``features()``, and start copying the result to the CPU."""
        if self.device.type != "cuda":
            begin = time.perf_counter()
            return Pending(features().cpu(), time.perf_counter() - begin)
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        found = features()
        host = torch.empty(found.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(found, non_blocking=True)
        done.record()
        return Pending(host, begun=begun, done=done)

    def _warm_up(self) -> None:
        side = self.encoder.side_px
        patches = np.zeros((self._batch, side, side, 3), np.uint8)
        # Generated code keeps the number of threads it was compiled with, so it is compiled as it is run: with one.
        with own_threads(), ThreadPoolExecutor(1, initializer=one_thread) as pool:
            try:
                pool.submit(lambda: self(patches).result()).result()
            except RuntimeError as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ConfigError(
                    f"torch.compile fails here ({reason}); on a CPU it needs a C++ compiler; --set embed.compile=false"
                ) from error


def one_thread() -> None:
    """Make torch compute in the calling thread only; the setting is per thread."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Restore torch's default number of threads, which ``one_thread`` also changes for threads that start later."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pinned(shape: tuple[int, ...]) -> UInt8:
    array: UInt8 = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return array
