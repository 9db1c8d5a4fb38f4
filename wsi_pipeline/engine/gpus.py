"""The NVIDIA GPUs that this process may use, according to the driver; importing torch for it would take seconds."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

_PROC = Path("/proc/driver/nvidia/gpus")


def list_gpus() -> str:
    """The output of ``nvidia-smi -L``; empty where there is no such program, or it finds no driver."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus(environ: Mapping[str, str], listed: Callable[[], str] = list_gpus, proc: Path = _PROC) -> list[str]:
    """A value of ``CUDA_VISIBLE_DEVICES`` for each GPU: those that the variable lists, else all of the machine.

    Where a GPU is divided into MIG instances, each instance counts instead of the GPU, as only these can be used.
    """
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        devices = []
        for name in named.split(","):
            if not name.strip() or name.strip().startswith("-"):
                break  # CUDA ignores all entries after an invalid one
            devices.append(name.strip())
        return devices
    text = listed()
    if text:
        return _parsed(text)
    return [str(i) for i in range(len(list(proc.iterdir())))] if proc.is_dir() else []


def _parsed(text: str) -> list[str]:
    found: list[list[str]] = []
    for line in text.splitlines():
        gpu = re.match(r"GPU (\d+):", line)
        part = re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line)
        if gpu:
            found.append([gpu[1]])
        elif part and found:
            found[-1] = [*(name for name in found[-1] if name.startswith("MIG-")), part[1]]
    return [name for names in found for name in names]
