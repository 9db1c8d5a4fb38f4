"""Choice of the compute device, and of the precision it supports."""

from __future__ import annotations

import torch

from .errors import ConfigError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Choose a torch device.

    Parameters
    ----------
    name : str
        ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    ConfigError
        This machine, or the installed torch, does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda":
        _check_cuda(name, device)
    elif device.type == "mps":
        if not _has_mps():
            raise ConfigError(
                "device 'mps' is not available: it needs an Apple GPU and macOS 12.3 or later; use auto or cpu"
            )
    elif device.type != "cpu":
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Data type of torch's autocast for a precision.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
        The configured precision.
    device : torch.device
        Where the computation runs.

    Returns
    -------
    torch.dtype or None
        None for fp32: no autocast.

    Raises
    ------
    ConfigError
        The device does not support the precision; autocast itself would warn and compute in fp32.
    """
    if precision == "fp32":
        return None
    dtype = _AUTOCAST[precision]
    if not torch.amp.is_autocast_available(device.type) or not _is_supported(dtype, device):
        raise ConfigError(f"device {device} cannot compute in {precision}; use another precision (fp32 always works)")
    return dtype


def _check_cuda(name: str, device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} is not available: torch {torch.__version__} finds no CUDA GPU; use auto or cpu"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device {name!r} is not available: the last of {count} is cuda:{count - 1}")


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _is_supported(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cuda":
        return dtype is not torch.bfloat16 or torch.cuda.is_bf16_supported()
    if device.type == "mps":  # bfloat16 came with macOS 14
        try:
            torch.ones(1, dtype=dtype, device=device).add_(1)
        except (RuntimeError, TypeError):
            return False
    return True
