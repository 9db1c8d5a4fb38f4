"""State dicts of the authors' own repositories under the names that models here use.

A translator reads every size from a shape, takes each tensor once, and leaves none: a tensor that it does not know
is refused by name. What a file cannot say (an activation, the number of landmarks) has the repository's own value
and is listed as assumed, so that it can be shown and given otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArtifactError, ConfigError

State = dict[str, Tensor]


class Linear(NamedTuple):
    """A linear layer as a file holds it."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,) zeros where the file has none


@dataclass(frozen=True)
class Translation:
    """A model of ours that computes what the authors' computes."""

    model: str  # registered name
    dim: int  # features a patch
    outputs: int
    options: dict[str, Any]  # from shapes and names
    assumed: dict[str, Any]  # the file cannot say; the repository's own, or what the user gave
    state: State
    sigmoid: bool = False  # whether the authors train one sigmoid an output
    notes: tuple[str, ...] = ()  # what else was taken for granted


class Unread:
    """The tensors of a file that no rule has taken yet. Raises ``ArtifactError`` that names the tensor at fault."""

    def __init__(self, state: Mapping[str, Tensor], where: str, family: str) -> None:
        self._left = dict(state)
        self._where, self._family = where, family

    def has(self, name: str) -> bool:
        """Whether a tensor, or a layer with such tensors, is there."""
        return name in self._left or f"{name}.weight" in self._left

    def take(self, name: str) -> Tensor:
        """The tensor ``name``, which must be there."""
        if name not in self._left:
            raise self.refusal(f"lacks {name}")
        return self._left.pop(name)

    def first(self, *names: str) -> str | None:
        """The first of these layers that is there."""
        return next((name for name in names if self.has(name)), None)

    def linear(self, *names: str, inputs: int | None = None, outputs: int | None = None, biased: bool = True) -> Linear:
        """The layer under the first of these names, of these sizes where given; ``biased``: its bias must be there."""
        name = self.first(*names) or names[0]
        weight = self.take(f"{name}.weight")
        shape = tuple(weight.shape)
        wanted = (shape[0] if outputs is None else outputs, shape[-1] if inputs is None else inputs)
        if shape != wanted:
            raise self.refusal(f"has {name}.weight {shape}, where {wanted} belongs")
        if not biased and f"{name}.bias" not in self._left:
            return Linear(weight, torch.zeros(shape[0]))
        return Linear(weight, self.take(f"{name}.bias"))

    def drop(self, *prefixes: str) -> None:
        """What only training needs."""
        self._left = {name: value for name, value in self._left.items() if not name.startswith(prefixes)}

    def done(self) -> None:
        """Nothing may be left."""
        for name in self._left:
            raise self.refusal(f"holds {name}, which that model does not have")

    def refusal(self, what: str) -> ArtifactError:
        """One line on why this file cannot be taken over."""
        return ArtifactError(
            f"{self._where} {what}, so it is not the {self._family} model that can be imported; "
            f"check --from and that the file is from the authors' own code"
        )


def choose(assumed: Mapping[str, Any], given: Mapping[str, Any], family: str) -> dict[str, Any]:
    """``assumed`` with what the user gave; raises ``ConfigError`` for an option that is not open."""
    for name in given:
        if name not in assumed:
            known = ", ".join(assumed) or "none"
            raise ConfigError(f"--option {name}: a {family} file says that itself, or it means nothing; open: {known}")
    return {**assumed, **given}


def named(layers: Mapping[str, Linear]) -> State:
    """name -> layer as name.weight and name.bias."""
    return {f"{name}.{part}": value for name, layer in layers.items() for part, value in layer._asdict().items()}


# --- TransMIL --------------------------------------------------------------------------------------------------


def transmil(left: Unread, classes: int, given: Mapping[str, Any]) -> Translation:  # noqa: ARG001
    """Shao et al., NeurIPS 2021. The names are ours; landmarks are hidden / 2 there, pinv iterations 6."""
    layers = ["_fc1.0", *(f"pos_layer.{proj}" for proj in ("proj", "proj1", "proj2")), "norm", "_fc2"]
    names = ["cls_token", *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))]
    for layer in ("layer1", "layer2"):
        names += [f"{layer}.norm.weight", f"{layer}.norm.bias", f"{layer}.attn.to_qkv.weight"]
        names += [f"{layer}.attn.to_out.0.weight", f"{layer}.attn.to_out.0.bias", f"{layer}.attn.res_conv.weight"]
    state = {name: left.take(name) for name in names}
    hidden, dim = state["_fc1.0.weight"].shape
    assumed = choose({"landmarks": max(1, hidden // 2), "pinv_iterations": 6}, given, "transmil")
    options = {"hidden": hidden, "heads": len(state["layer1.attn.res_conv.weight"])}
    return Translation("transmil", dim, len(state["_fc2.bias"]), options, assumed, state)


# --- attention-based MIL ---------------------------------------------------------------------------------------

_EMBEDDINGS = ("feature_extractor_part2.0", "feature_extractor.0", "feature_extractor", "feature.0", "embed.0", "fc1")
_WEIGHTS = ("attention_w", "attention_weights", "attention.attention_w", "attention.attention_weights")
_PLAIN_WEIGHTS = tuple(f"{place}.{i}" for place in ("attention", "attention.attention") for i in (2, 3))
_CLASSIFIERS = ("classifier.0", "classifier.1", "classifier", "classifier.fc")


def abmil(left: Unread, classes: int, given: Mapping[str, Any]) -> Translation:
    """Ilse et al., ICML 2018, behind fixed features: [linear, ReLU,] attention, plain or gated, one linear classifier.

    One output is one sigmoid; for two classes it becomes the logits (0, z), whose softmax is that sigmoid. The bias
    of the attention's score is left out: softmax does not see it.
    """
    choose({}, given, "abmil")
    layers: dict[str, Linear] = {}
    hidden = None
    notes: tuple[str, ...] = ("attention on the features themselves: no embedding is in the file",)
    if (embedding := left.first(*_EMBEDDINGS)) is not None:
        layers["embed.0"] = left.linear(embedding, biased=False)
        hidden = len(layers["embed.0"].weight)
        notes = (f"ReLU behind {embedding}",)
    gated = left.first("attention_U.0", "attention.attention_U.0") is not None
    if gated:
        layers["attend.0"] = left.linear("attention_V.0", "attention.attention_V.0", inputs=hidden, biased=False)
    else:
        layers["attend.0"] = left.linear(
            "attention.0",
            "attention.attention.0",
            "attention_V.0",
            "attention.attention_V.0",
            inputs=hidden,
            biased=False,
        )
    attention_dim, width = layers["attend.0"].weight.shape
    if gated:
        layers["gate.0"] = left.linear(
            "attention_U.0", "attention.attention_U.0", inputs=width, outputs=attention_dim, biased=False
        )
    score = left.linear(*_WEIGHTS, *_PLAIN_WEIGHTS, inputs=attention_dim, outputs=1, biased=False)
    classifier = left.linear(*_CLASSIFIERS, inputs=width, biased=False)
    sigmoid = len(classifier.weight) == 1
    if sigmoid and classes == 2:
        classifier = Linear(*(torch.cat([torch.zeros_like(part), part]) for part in classifier))
        sigmoid = False
        notes += ("the one output is the second class's sigmoid",)
    state = named({**layers, "classify": classifier}) | {"score.weight": score.weight}
    options = {"gated": gated, "hidden": hidden, "attention_dim": attention_dim}
    dim = width if hidden is None else layers["embed.0"].weight.shape[1]
    return Translation("abmil", dim, len(classifier.weight), options, {}, state, sigmoid, notes)


# --- DTFD-MIL --------------------------------------------------------------------------------------------------


def dtfd(left: Unread, classes: int, given: Mapping[str, Any]) -> Translation:
    """Zhang et al., CVPR 2022: four state dicts. Four pseudo-bags and AFS are the repository's defaults.

    Its split at test is random, ours is fixed; from three classes on its ranking of patches is not ours.
    """
    if left.has("dim_reduction.resBlocks.0.block.0"):
        raise left.refusal("has residual blocks behind dim_reduction (numLayer_Res above 0)")
    state = {"dim_reduction.fc1.weight": left.take("dim_reduction.fc1.weight")}
    hidden, dim = state["dim_reduction.fc1.weight"].shape
    layers = {}
    for place in ("attention", "att_classifier.attention"):
        for part in ("attention_V.0", "attention_U.0"):
            layers[f"{place}.{part}"] = left.linear(f"{place}.{part}", inputs=hidden)
        layers[f"{place}.attention_weights"] = left.linear(f"{place}.attention_weights", outputs=1)
    for place in ("classifier.fc", "att_classifier.classifier.fc"):
        layers[place] = left.linear(place, inputs=hidden)
    assumed = choose({"distill": "afs", "pseudo_bags": 4}, given, "dtfd")
    if classes > 2 and assumed["distill"] != "afs":
        raise ConfigError(
            f"--option distill={assumed['distill']}: with {classes} classes the authors' code ranks patches otherwise "
            f"than the dtfd model here; only distill=afs can be imported"
        )
    options = {"hidden": hidden, "attention_dim": len(layers["attention.attention_V.0"].weight)}
    outputs = len(layers["att_classifier.classifier.fc"].weight)
    return Translation("dtfd", dim, outputs, options, assumed, state | named(layers))


# --- CLAM ------------------------------------------------------------------------------------------------------


def clam(left: Unread, classes: int, given: Mapping[str, Any]) -> Translation:  # noqa: ARG001
    """Lu et al., Nature Biomedical Engineering 2021: one attention branch (SB) or one a class (MB), gated or not.

    Dropout has no weights but moves what stands behind it: the attention is attention_net.3 or .2, and without a gate
    its second layer is .3 or .2 again. The instance classifiers come along; buffers of the instance loss do not.
    """
    choose({}, given, "clam")
    left.drop("instance_loss_fn.")
    layers = {"attention_net.0": left.linear("attention_net.0")}
    hidden, dim = layers["attention_net.0"].weight.shape
    old = left.first("attention_net.2.attention_a.0", "attention_net.2.0") is not None
    place = "attention_net.2" if old else "attention_net.3"
    gated = left.has(f"{place}.attention_a.0")
    first, last = ("attention_a.0", "attention_c") if gated else ("module.0", "module.3")
    layers[f"attention_net.3.{first}"] = left.linear(f"{place}.{first.removeprefix('module.')}", inputs=hidden)
    width = len(layers[f"attention_net.3.{first}"].weight)
    if gated:
        name = "attention_b.0"
        layers[f"attention_net.3.{name}"] = left.linear(f"{place}.{name}", inputs=hidden, outputs=width)
    multi = left.has("classifiers.0")
    outputs = 0
    while left.has(f"classifiers.{outputs}"):
        layers[f"classifiers.{outputs}"] = left.linear(f"classifiers.{outputs}", inputs=hidden, outputs=1)
        outputs += 1
    if not multi:
        layers["classifiers"] = left.linear("classifiers", inputs=hidden)
        outputs = len(layers["classifiers"].weight)
    names = (f"{place}.attention_c",) if gated else (f"{place}.3", f"{place}.2")
    layers[f"attention_net.3.{last}"] = left.linear(*names, inputs=width, outputs=outputs if multi else 1)
    for c in range(outputs):
        layers[f"instance_classifiers.{c}"] = left.linear(f"instance_classifiers.{c}", inputs=hidden, outputs=2)
    options = {"gated": gated, "hidden": hidden, "attention_dim": width}
    return Translation("clam_mb" if multi else "clam_sb", dim, outputs, options, {}, named(layers))


# --- DSMIL -----------------------------------------------------------------------------------------------------


def dsmil(left: Unread, classes: int, given: Mapping[str, Any]) -> Translation:  # noqa: ARG001
    """Li et al., CVPR 2021, in the forms that its repository has had: q of one or two layers, v none, linear or ReLU.

    A linear q with a linear v is either the first form (no ReLU) or a later choice (ReLU): the user has to say.
    """
    if left.has("b_classifier.lin.0"):
        raise left.refusal("has a layer before both streams (b_classifier.lin.0)")
    nonlinear, valued = left.has("b_classifier.q.0"), left.has("b_classifier.v.1")
    layers = {"i_classifier.fc.0": left.linear("i_classifier.fc.0", "i_classifier.fc")}
    outputs, dim = layers["i_classifier.fc.0"].weight.shape
    first = "b_classifier.q.0" if nonlinear else "b_classifier.q"
    layers[first] = left.linear(first, inputs=dim)
    query_dim = len(layers[first].weight)
    if nonlinear:
        layers["b_classifier.q.2"] = left.linear("b_classifier.q.2", inputs=query_dim, outputs=query_dim)
    options: dict[str, Any] = {"query_dim": query_dim, "nonlinear": nonlinear}
    assumed: dict[str, Any] = {}
    if valued:
        layers["b_classifier.v.1"] = left.linear("b_classifier.v.1", inputs=dim, outputs=dim)
        assumed = choose({"values": "relu"}, given, "dsmil")
        if assumed["values"] not in ("relu", "linear") or not (nonlinear or "values" in given):
            raise ConfigError(
                "--option values: the file holds b_classifier.v.1 but not whether ReLU stands behind it (with a single "
                "layer q, the authors' first code has none); give --option values=linear or --option values=relu"
            )
    else:
        choose({}, given, "dsmil")
        options["values"] = "identity"
    state = {name: left.take(name) for name in ("b_classifier.fcc.weight", "b_classifier.fcc.bias")}
    notes = ("the bag stream alone predicts; their average with the instance stream (--average) is not taken",)
    return Translation("dsmil", dim, outputs, options, assumed, state | named(layers), sigmoid=True, notes=notes)


FAMILIES: dict[str, Callable[[Unread, int, Mapping[str, Any]], Translation]] = {
    "abmil": abmil,
    "clam": clam,
    "dsmil": dsmil,
    "dtfd": dtfd,
    "transmil": transmil,
}
