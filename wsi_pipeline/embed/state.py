"""Loading of weights files into networks: strict, no tensor is ignored, missing or reshaped without an error."""

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
    """Build a network with the same random weights each time; the caller's random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        return build()


def frozen(module: nn.Module) -> nn.Module:
    """Set a network to eval mode, without gradients of its weights."""
    return module.eval().requires_grad_(False)


def read_state(path: Path) -> State:
    """Read a weights file.

    Parameters
    ----------
    path : Path
        .pth, .pt, .bin (tensors only, no pickled code) or .safetensors. The wrappers ``{"state_dict": …}`` and
        ``{"model": …}`` and the prefixes of DataParallel and torch.compile are removed.

    Returns
    -------
    dict of str to Tensor
        The tensors by name, on the CPU.

    Raises
    ------
    ArtifactError
        The file is damaged, or contains other objects than tensors.
    ConfigError
        Its suffix is none of these.
    """
    content = _read(path)
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{path} contains no weights; it must be a state_dict (name -> tensor)")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ArtifactError(f"{path} is not a state_dict: {name!r} is a {type(value).__name__}, not a tensor")
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
            f"{path} is damaged or contains more than tensors; save it as torch.save(model.state_dict(), path), "
            f"or as .safetensors"
        ) from error


def load_state(module: nn.Module, state: State, where: Path, dropped: tuple[str, ...] = ()) -> None:
    """Load tensors into a network: every tensor of both must match.

    Parameters
    ----------
    module : torch.nn.Module
        The network; if it is on torch's meta device, it adopts the tensors instead of copying them.
    state : dict of str to Tensor
        The tensors by name.
    where : Path
        The file, for the error message.
    dropped : tuple of str
        Tensors whose names begin with one of these are ignored.

    Raises
    ------
    ArtifactError
        A tensor is missing, unexpected, or of another shape; names the first.
    """
    expected = module.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith(dropped)}
    for name in expected:
        if name.endswith("num_batches_tracked"):  # files from before torch 0.4.1 lack it; evaluation never reads it
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    for name, tensor in expected.items():
        if name not in given:
            raise ArtifactError(f"{where} does not fit this encoder: {name!r} is missing in it")
        if given[name].shape != tensor.shape:
            raise ArtifactError(
                f"{where} does not fit this encoder: {name!r} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            )
    for name in given:
        if name not in expected:
            raise ArtifactError(f"{where} does not fit this encoder: the encoder has no tensor {name!r}")
    adopt = any(tensor.is_meta for tensor in expected.values())
    if adopt:
        given = {name: value.to(expected[name].dtype) for name, value in given.items()}
    module.load_state_dict(given, strict=True, assign=adopt)
