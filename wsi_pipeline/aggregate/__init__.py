"""Slide models: one bag of patch features in, class logits out (multiple-instance learning, MIL).

A model is built by name: ``models.build("abmil", dim, classes, **options)``, with ``dim`` features per patch and
``classes`` logits. Each call takes one whole bag, so nothing outside a model pads, masks or collates. Initial weights
are drawn from torch's global generator: call ``torch.manual_seed`` before building a model.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ..registry import Registry

models: Registry[nn.Module] = Registry("model", "wsi_pipeline.aggregate")


class MILOutput(NamedTuple):
    """Output of a model for one bag of N patches."""

    logits: Tensor  # (C,)
    attention: Tensor | None  # (N,), or (C, N) where each class has its own; sums to 1 over N; None: the model has none


class MILModel(Protocol):
    """Interface of every module that a factory of ``models`` returns."""

    def __call__(self, features: Tensor, xy: Tensor) -> MILOutput:
        """Run the model on one bag.

        Parameters
        ----------
        features : Tensor, (N, D)
            Floating point; N is at least 1.
        xy : Tensor, (N, 2)
            Positions of the patches in units of the patch stride.
        """
        ...


class TrainingOutput(NamedTuple):
    """Output for one bag of a model with a training loss of its own: sum of weight * task loss(logits), plus extra."""

    streams: tuple[tuple[float, Tensor], ...]  # (weight, logits (C,)); as many for every bag
    extra: Tensor  # () added to the loss unchanged: an instance loss, a graph-cut loss; 0 where there is none


@runtime_checkable
class OwnTraining(Protocol):
    """A model whose training loss is more than the task's loss on its logits, see ``TrainingOutput``."""

    def training_output(self, features: Tensor, xy: Tensor, label: int | None) -> TrainingOutput:
        """Run the model for training; ``label`` is the bag's class index, None where the task has no single class."""
        ...


@runtime_checkable
class Additive(Protocol):
    """A model whose logits are a sum over patches: ``logits == bias() + evidence(features, xy).sum(0)``.

    Exact in eval mode; in training mode each call draws its own dropout.
    """

    def evidence(self, features: Tensor, xy: Tensor) -> Tensor:
        """Signed contribution of each patch to each logit, (N, C)."""
        ...

    def bias(self) -> Tensor:
        """Logits without any patch, (C,)."""
        ...


@runtime_checkable
class InstanceLogits(Protocol):
    """A model with a classifier of single patches in addition to that of the bag."""

    def instance_logits(self, features: Tensor, xy: Tensor) -> Tensor:
        """Logits of each patch: (N, C) for classes that compete, or (N, C, 2) for each class absent or present."""
        ...


class WeightedMean(NamedTuple):
    """Parts of ``logits_c = bias_c + sum_k softmax_k(log_weights)_kc values_kc`` for one bag."""

    log_weights: Tensor  # (N, 1), or (N, C) where each class has its own; each depends on its own patch only
    values: Tensor  # (N, C)
    bias: Tensor  # (C,)


@runtime_checkable
class HasWeightedMean(Protocol):
    """A model whose logits are a softmax-weighted mean of its patches.

    Removing patches then changes only two sums and needs no further forward pass. Explanations compare the statement
    with the model's logits before they use it.
    """

    def weighted_mean(self, features: Tensor, xy: Tensor) -> WeightedMean | None:
        """The parts for ``features`` (N, D), in eval mode; None where this variant of the model has no such form."""
        ...


@runtime_checkable
class EmbedsPatches(Protocol):
    """A model with a layer that embeds each patch independently of the others."""

    @property
    def patch_embedding(self) -> nn.Module:
        """The module whose output is the embedding h, (N, hidden)."""
        ...
