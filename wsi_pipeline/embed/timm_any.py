"""Any network of timm by its name: ``timm:resnet18.a1_in1k``, ``timm:hf-hub:1aurent/vit_small_patch16_224.lunit_dino``.

R. Wightman, PyTorch Image Models, github.com/huggingface/pytorch-image-models. The classification head is left out.
Mean, std, side and interpolation are those of the weights; their centre crop is not applied: the whole patch is
resized to the network's side, because its footprint on the slide is fixed by the grid.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..errors import ArtifactError, ConfigError, UnknownNameError
from . import Colour, Encoder, encoders
from .state import State, frozen, load_state, read_state, seeded
from .token_pooling import pooled
from .weights import HubFile, Source, UrlFile, digest, locate

_HUB = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class _Blueprint:
    """How timm builds a network, and the location of its weights."""

    architecture: str  # timm's name
    arguments: Mapping[str, Any]  # those that its weights need
    data: Mapping[str, Any]  # timm's pretrained_cfg: input, mean, std, head
    source: Source


def _source(model: str) -> Source:
    return _blueprint(model).source


@encoders.register(
    "timm:",
    dim=None,
    side_px=None,
    recommended_mpp=0.5,
    licence="see the model's page",
    paper="Wightman, PyTorch Image Models",
    source="huggingface.co/timm",
    hub="timm/<name>",
    gated=False,
    weights=_source,
)
def timm_any(
    model: str,
    weights: Path | None,
    pretrained: bool,
    *,
    img_size: int | None = None,
    pool: str = "model",
    model_args: Mapping[str, Any] | None = None,
    recommended_mpp: float = 0.5,
) -> Encoder:
    """Any network of timm: timm:<name> or timm:hf-hub:<owner>/<name>.

    Parameters
    ----------
    model : str
        The text after ``timm:``.
    weights : Path, optional
        Local weights file; default: the published ones.
    pretrained : bool
        False: random weights.
    img_size : int, optional
        Another side of the input in pixels.
    pool : {"model", "cls", "mean", "cls+mean"}
        The network's own pooling, or a pooling of a transformer's tokens.
    model_args : mapping, optional
        Further arguments of ``timm.create_model``.
    recommended_mpp : float
        µm per pixel of the patches.

    Returns
    -------
    Encoder
        The encoder.

    Raises
    ------
    UnknownNameError, ConfigError, ArtifactError
        timm does not have the network, an option does not fit, or the weights are missing.
    """
    name = f"timm:{model}"
    blueprint = _blueprint(model)
    path = locate(blueprint.source, weights, pretrained)
    arguments = {**blueprint.arguments, **_with_layers(name, model_args or {})}
    if img_size is not None and blueprint.data.get("fixed_input_size"):
        arguments["img_size"] = img_size
    network = seeded(lambda: _create(name, blueprint, arguments))
    if path is not None:
        _load(network, path)
    side = img_size or _side(network)
    _check_side(name, network, side)
    module = frozen(pooled(network, pool, name))
    colour = _colour(network)
    return Encoder(
        name=name,
        module=module,
        dim=_dim(name, module, side),
        side_px=side,
        recommended_mpp=recommended_mpp,
        mean=colour[0],
        std=colour[1],
        weights_digest=digest(path),
        interpolation=_interpolation(network),
    )


def _blueprint(model: str) -> _Blueprint:
    for prefix in _HUB:
        if model.startswith(prefix):
            return _hub_blueprint(model.removeprefix(prefix))
    return _timm_blueprint(model)


def _timm_blueprint(model: str) -> _Blueprint:
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    import timm
    from timm.models import get_pretrained_cfg

    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        close = get_close_matches(model, timm.list_models(), n=1)
        hint = f"; did you mean 'timm:{close[0]}'?" if close else ""
        raise UnknownNameError(f"timm {timm.__version__} has no network called {model!r}{hint}")
    try:
        found = get_pretrained_cfg(model)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise UnknownNameError(f"timm has no weights called {model!r}; it has: {tags}") from error
    data = {} if found is None else dataclasses.asdict(found)
    return _Blueprint(architecture, {}, data, _timm_source(model, data))


def _timm_source(model: str, data: Mapping[str, Any]) -> Source:
    if data.get("hf_hub_id"):
        name = data.get("hf_hub_filename")
        return HubFile(data["hf_hub_id"], (name,)) if name else HubFile(data["hf_hub_id"])
    if isinstance(data.get("url"), str) and data["url"]:
        return UrlFile(data["url"])
    return _NoWeights(model)


def _hub_blueprint(identifier: str) -> _Blueprint:
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    from timm.models import PretrainedCfg

    repo, _, revision = identifier.partition("@")
    config = HubFile(repo, ("config.json",), revision=revision or None).fetch()
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        architecture = str(content["architecture"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{repo} on the Hugging Face hub is not a timm model: its config.json names none") from error
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    data = {name: value for name, value in content.get("pretrained_cfg", content).items() if name in known}
    return _Blueprint(architecture, content.get("model_args", {}), data, HubFile(repo, revision=revision or None))


@dataclass(frozen=True)
class _NoWeights:
    """A network for which timm publishes no weights."""

    model: str

    def cached(self) -> Path | None:
        """Always None."""
        return None

    def fetch(self) -> Path:
        """Raises ``ArtifactError``."""
        raise ArtifactError(
            f"timm publishes no weights for {self.model!r}; give your own as --set embed.weights=PATH, "
            f"or test the pipeline with --set embed.pretrained=false"
        )


def _create(name: str, blueprint: _Blueprint, arguments: Mapping[str, Any]) -> nn.Module:
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    import timm

    build: Callable[..., nn.Module] = timm.create_model
    everything = {"num_classes": 0, "pretrained_cfg": dict(blueprint.data) or None, **arguments}
    try:
        return build(blueprint.architecture, pretrained=False, **everything)
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"encoder {name!r}: timm refuses these options ({' '.join(str(error).split())})") from error


def _with_layers(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the name in ``mlp_layer: SwiGLUPacked`` by timm's class; YAML can only contain the name."""
    from .. import torchvision_guard  # noqa: F401, I001  (before timm)
    import timm.layers

    allowed = {"Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked"}
    layer = arguments.get("mlp_layer")
    if layer is None:
        return dict(arguments)
    if layer not in allowed:
        raise ConfigError(f"encoder {name!r}: mlp_layer {layer!r} is unknown; use one of {', '.join(sorted(allowed))}")
    return {**arguments, "mlp_layer": getattr(timm.layers, layer)}


def _load(network: nn.Module, path: Path) -> None:
    """Apply timm's own renaming, if the architecture has one, then load strictly."""
    state = read_state(path)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    converted: State = convert(state, network) if convert is not None else state
    heads = network.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    load_state(network, converted, path, dropped=tuple(f"{head}." for head in heads))


def _check_side(name: str, network: nn.Module, side_px: int) -> None:
    """Raises ``ConfigError`` for a side that is not a multiple of the token's, which would lose its last pixels."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is not None and side_px % int(patch[0]):
        raise ConfigError(f"encoder {name!r}: img_size {side_px} must be a multiple of its token's {int(patch[0])} px")


def _side(network: nn.Module) -> int:
    return int(_data_config(network)["input_size"][-1])


def _colour(network: nn.Module) -> tuple[Colour, Colour]:
    data = _data_config(network)
    (a, b, c), (d, e, f) = data["mean"], data["std"]
    return (float(a), float(b), float(c)), (float(d), float(e), float(f))


def _interpolation(network: nn.Module) -> Literal["bilinear", "bicubic"]:
    return "bilinear" if _data_config(network)["interpolation"] == "bilinear" else "bicubic"


def _data_config(network: nn.Module) -> Mapping[str, Any]:
    from timm.data import resolve_model_data_config  # type: ignore[attr-defined]

    data: Mapping[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return data


def _dim(name: str, module: nn.Module, side_px: int) -> int:
    """Number of features, found by a forward pass: timm's attributes ignore a head with a hidden layer."""
    with torch.inference_mode():
        try:
            features = module(torch.zeros(1, 3, side_px, side_px))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"encoder {name!r} does not take {side_px} px: {' '.join(str(error).split())}") from error
    if features.ndim != 2:
        raise ConfigError(
            f"encoder {name!r} returns {tuple(features.shape)}, not one vector per patch; set encoder_options.pool"
        )
    return int(features.shape[1])
