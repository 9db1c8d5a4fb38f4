"""Bags read from HDF5 for one fold; seed, fold and epoch determine their order and the patches sampled from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..aggregate.inference import bag_tensors, fault
from ..errors import ArtifactError
from ..rng import generator_for
from ..store import read_bag
from ..types import FeatureBag
from .labels import Target
from .sampling import epoch_order, patch_rows

CACHE_BYTES = 2**30  # a fold whose bags are smaller in total keeps them in memory, in the stored precision


@dataclass(frozen=True)
class BagKind:
    """The properties that all bags of a fold must share."""

    encoder: str
    weights_digest: str
    dim: int
    target_mpp: float
    side_px: int

    @classmethod
    def of(cls, bag: FeatureBag) -> BagKind:
        """The kind of ``bag``."""
        grid = bag.grid
        return cls(bag.encoder, bag.weights_digest, bag.features.shape[1], grid.target_mpp, grid.side_px)


class BagReader:
    """Reads bags by slide_id.

    Parameters
    ----------
    paths : mapping of slide_id to the path of its bag
    cache_bytes : int
        Bags are kept in memory where the files take less than this in total.

    Raises
    ------
    ArtifactError
        On reading a bag that is empty, has non-finite features, or differs in kind from the first bag.
    """

    def __init__(self, paths: Mapping[str, Path], cache_bytes: int = CACHE_BYTES) -> None:
        self._paths = paths
        self._caching = sum(path.stat().st_size for path in paths.values()) < cache_bytes
        self._cache: dict[str, FeatureBag] = {}
        first = min(paths)
        self._first = paths[first]
        self.kind = BagKind.of(read_bag(self._first))

    def __call__(self, slide_id: str) -> FeatureBag:
        if slide_id in self._cache:
            return self._cache[slide_id]
        bag = read_bag(self._paths[slide_id])
        self._check(bag, self._paths[slide_id])
        if self._caching:
            self._cache[slide_id] = bag
        return bag

    def _check(self, bag: FeatureBag, path: Path) -> None:
        if reason := fault(bag):
            raise ArtifactError(f"the bag {path} {reason}")
        found = BagKind.of(bag)
        for name, wanted in vars(self.kind).items():
            if getattr(found, name) != wanted:
                raise ArtifactError(
                    f"the bag {path} has {name} {getattr(found, name)!r}, but {self._first} has {wanted!r}; "
                    f"run `wsi tile` and `wsi embed` for all slides with one config"
                )


class LabelledBag(NamedTuple):
    """One bag of a training or validation step."""

    features: Tensor  # (n, D), in the stored precision
    xy: Tensor  # (n, 2) float32, in units of the patch stride
    target: Tensor  # (K,) float32, see ``labels``


@dataclass(frozen=True)
class Sampling:
    """Patch sampling and augmentation of a training bag. By default a bag is used whole and unchanged."""

    max_patches: int | None = None  # None: all patches
    feature_noise: float = 0.0  # standard deviation of Gaussian noise, in standard deviations of the bag's features
    feature_drop: float = 0.0  # probability that a feature channel is set to zero for the whole bag

    def augment(self, features: Tensor, generator: np.random.Generator) -> Tensor:
        """Features (n, D) with noise added and channels dropped; unchanged where neither is configured."""
        if self.feature_noise:
            noise = torch.from_numpy(generator.standard_normal(features.shape, np.float32))
            features = features.float()
            features = features + self.feature_noise * features.std(unbiased=False) * noise.to(features)
        if self.feature_drop:
            kept = torch.from_numpy(generator.random(features.shape[1]) >= self.feature_drop)
            features = features * kept.to(features) / (1 - self.feature_drop)
        return features


class Bags:
    """An iterable over groups of ``size`` bags in the order of ``names``, read lazily; the last may be smaller.

    ``seeds``, position and name determine the sampling and augmentation of a bag.
    """

    def __init__(
        self,
        data: FoldData,
        names: Sequence[str],
        sampling: Sampling | None = None,
        seeds: tuple[int, ...] = (),
        size: int = 1,
    ) -> None:
        self._data = data
        self._names = names
        self._sampling = sampling
        self._seeds = seeds
        self._size = size

    def __len__(self) -> int:
        return -(-len(self._names) // self._size)

    def __iter__(self) -> Iterator[tuple[LabelledBag, ...]]:
        for start in range(0, len(self._names), self._size):
            stop = min(start + self._size, len(self._names))
            yield tuple(self._bag(position) for position in range(start, stop))

    def _bag(self, position: int) -> LabelledBag:
        name = self._names[position]
        bags = self._data.bags(name)
        target = torch.tensor(self._data.targets[name], dtype=torch.float32)
        if self._sampling is None:
            return LabelledBag(*bag_tensors(bags), target)
        generator = generator_for("patches", *self._seeds, position, name)
        rows = None
        if self._sampling.max_patches is not None:
            rows = patch_rows(sum(len(b.grid) for b in bags), self._sampling.max_patches, generator)
        features, xy = bag_tensors(bags, rows=rows)
        return LabelledBag(self._sampling.augment(features, generator), xy, target)


@dataclass(frozen=True)
class FoldData:
    """The bags of a fold by name, with their targets and slides."""

    reader: BagReader
    train: tuple[str, ...]
    val: tuple[str, ...]
    targets: Mapping[str, Target]
    seed: int
    fold: int
    units: Mapping[str, tuple[str, ...]] | None = None  # name -> slide ids; None: each name is a slide_id

    def bags(self, name: str) -> list[FeatureBag]:
        """The feature bags of the slides that make up the bag ``name``."""
        return [self.reader(slide_id) for slide_id in (self.units[name] if self.units else (name,))]

    def training(self, epoch: int, *, balanced: bool, sampling: Sampling, size: int = 1) -> Bags:
        """Training bags of ``epoch`` in groups of ``size``, the same for every call.

        ``balanced`` draws every class equally often; it requires class indices as targets.
        """
        seeds = (self.seed, self.fold, epoch)
        classes = [int(self.targets[name][0]) for name in self.train] if balanced else [0] * len(self.train)
        order = epoch_order(classes, balanced, generator_for("bags", *seeds))
        return Bags(self, [self.train[i] for i in order], sampling, seeds, size)

    def validation(self) -> Bags:
        """All validation bags, with all their patches."""
        return Bags(self, self.val)
