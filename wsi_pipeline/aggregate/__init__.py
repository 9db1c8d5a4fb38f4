"""Slide models: one bag of patch features in, class logits out (multiple-instance learning, MIL).

A model is built by name: ``models.build("abmil", dim, classes, **options)``, ``dim`` features a patch and ``classes``
logits. It takes one whole bag a call, so there is no padding, mask or collate outside a model. Weights are drawn
from torch's global generator: call ``torch.manual_seed`` before you build.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ..registry import Registry

models: Registry[nn.Module] = Registry("model", "wsi_pipeline.aggregate")


class MILOutput(NamedTuple):
    """What a model says of one bag."""

    logits: Tensor  # (C,)
    attention: Tensor | None  # (N,), or (C, N) where each class has its own; sums to 1 over N; None: there is none


class MILModel(Protocol):
    """What every factory of ``models`` returns, as an ``nn.Module``."""

    def __call__(self, features: Tensor, xy: Tensor) -> MILOutput:
        """``features`` (N, D) float; ``xy`` (N, 2) float, positions in units of the patch stride. N is at least 1."""
        ...


class TrainingOutput(NamedTuple):
    """What a model with a training loss of its own gives for one bag."""

    streams: tuple[tuple[float, Tensor], ...]  # (weight, logits (C,)): each is given the task's loss; as many every bag
    extra: Tensor  # () what is added to the loss as it is: an instance loss, a graph's cut; 0 where there is nothing


@runtime_checkable
class OwnTraining(Protocol):
    """A model whose loss is not just the task's on its logits: sum of weight * task loss(logits) + extra."""

    def training_output(self, features: Tensor, xy: Tensor, label: int | None) -> TrainingOutput:
        """Like a call, in training. ``label``: the bag's class index; None where the task has no single class."""
        ...


@runtime_checkable
class Additive(Protocol):
    """A model whose logits are a sum over patches: ``logits == bias() + evidence(features, xy).sum(0)``.

    Exact in eval mode; in training each call draws its own dropout.
    """

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:
        """What each patch adds to each logit, (N, C), signed."""
        ...

    def bias(self) -> Tensor:
        """What the logits are before any patch is seen, (C,)."""
        ...


@runtime_checkable
class InstanceLogits(Protocol):
    """A model with a classifier of single patches beside that of the bag."""

    def instance_logits(self, features: Tensor, xy: Tensor) -> Tensor:
        """What it says of each patch: (N, C), classes against each other, or (N, C, 2), each class absent, present."""
        ...


class WeightedMean(NamedTuple):
    """Parts of ``logits_c = bias_c + sum_k softmax_k(log_weights)_kc values_kc`` for one bag."""

    log_weights: Tensor  # (N, 1), or (N, C) where each class has its own; of a patch alone, whatever else is in the bag
    values: Tensor  # (N, C)
    bias: Tensor  # (C,)


@runtime_checkable
class HasWeightedMean(Protocol):
    """A model whose logits are a softmax-weighted mean of its patches.

    Then a bag without some patches costs no further forward pass: a patch that is left out only changes two sums.
    """

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean | None:
        """The parts for ``features`` (N, D), in eval mode; None where this variant of the model has no such form."""
        ...


@runtime_checkable
class EmbedsPatches(Protocol):
    """A model with a layer that embeds each patch, regardless of the others."""

    @property
    def patch_embedding(self) -> nn.Module:
        """The module whose output is h, (N, hidden)."""
        ...
