"""Weights files into networks: nothing is left out, added or reshaped in silence."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ArtifactError, ConfigError

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_SEED = 0


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with the same random weights each time; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        return build()


def frozen(module: nn.Module) -> nn.Module:
    """The network as it is used here: in eval mode, without gradients of its weights."""
    return module.eval().requires_grad_(False)


def read_state(path: Path) -> State:
    """Name -> tensor of a .pth, .pt, .bin (tensors only, no pickled code) or .safetensors file.

    Takes ``{"state_dict": …}`` and ``{"model": …}`` and the prefixes of DataParallel and torch.compile off.
    """
    content = _read(path)
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{path} holds no weights; it must be a state_dict (name -> tensor)")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ArtifactError(f"{path} is no state_dict: {name!r} is a {type(value).__name__}, not a tensor")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is not a safetensors file ({error}); fetch it again") from error
    if path.suffix not in {".pth", ".pt", ".bin"}:
        raise ConfigError(f"weights {path} must end in .pth, .pt, .bin or .safetensors")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} is damaged or holds more than tensors; save it as torch.save(model.state_dict(), path), "
            f"or as .safetensors"
        ) from error


def load_state(module: nn.Module, state: State, where: Path, dropped: tuple[str, ...] = ()) -> None:
    """Fill ``module`` with ``state``: every tensor of both, except names that begin with one of ``dropped``.

    A module on torch's meta device takes the tensors over instead of copying them. Raises ``ArtifactError`` that
    names the first tensor which is missing, unexpected, or of another shape.
    """
    wanted = module.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith(dropped)}
    for name in wanted:
        if name.endswith("num_batches_tracked"):  # files from before torch 0.4.1 lack it; evaluation never reads it
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    for name, tensor in wanted.items():
        if name not in given:
            raise ArtifactError(f"{where} does not fit this encoder: {name!r} is missing in it")
        if given[name].shape != tensor.shape:
            raise ArtifactError(
                f"{where} does not fit this encoder: {name!r} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            )
    for name in given:
        if name not in wanted:
            raise ArtifactError(f"{where} does not fit this encoder: it has no place for {name!r}")
    adopt = any(tensor.is_meta for tensor in wanted.values())
    if adopt:
        given = {name: value.to(wanted[name].dtype) for name, value in given.items()}
    module.load_state_dict(given, strict=True, assign=adopt)
