"""Bags from HDF5 for one fold, in the order and with the patches that seed, fold and epoch decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import ArtifactError
from ..store import read_bag
from ..types import FeatureBag
from .inference import bag_tensors, fault
from .sampling import epoch_order, patch_rows, stream

CACHE_BYTES = 2**30  # folds whose bags are smaller keep them in memory, as stored


@dataclass(frozen=True)
class BagKind:
    """What all bags of a fold must share."""

    encoder: str
    weights_digest: str
    dim: int
    target_mpp: float
    side_px: int

    @classmethod
    def of(cls, bag: FeatureBag) -> BagKind:
        grid = bag.grid
        return cls(bag.encoder, bag.weights_digest, bag.features.shape[1], grid.target_mpp, grid.side_px)


class BagReader:
    """Reads bags by slide_id; keeps them where all together take less than ``cache_bytes``.

    Raises ``ArtifactError`` at the first bag that is of another kind than the first one, or of no use.
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
    """One step's input."""

    features: Tensor  # (n, D), as stored
    xy: Tensor  # (n, 2) float32, units of the stride
    label: int


class Bags:
    """The bags of ``slide_ids`` in that order, read as they are asked for.

    ``max_patches`` of each are sampled, as ``seeds``, position and slide_id decide; None: all.
    """

    def __init__(
        self,
        reader: BagReader,
        slide_ids: Sequence[str],
        labels: Mapping[str, int],
        max_patches: int | None = None,
        seeds: tuple[int, ...] = (),
    ) -> None:
        self._reader = reader
        self._slide_ids = slide_ids
        self._labels = labels
        self._max_patches = max_patches
        self._seeds = seeds

    def __len__(self) -> int:
        return len(self._slide_ids)

    def __iter__(self) -> Iterator[LabelledBag]:
        for position, slide_id in enumerate(self._slide_ids):
            bag = self._reader(slide_id)
            rows = None
            if self._max_patches is not None:
                generator = stream("patches", *self._seeds, position, slide_id)
                rows = patch_rows(len(bag.grid), self._max_patches, generator)
            yield LabelledBag(*bag_tensors(bag, rows=rows), self._labels[slide_id])


@dataclass(frozen=True)
class FoldData:
    """A fold's slides with their class indices, and the bags behind them."""

    reader: BagReader
    train: tuple[str, ...]
    val: tuple[str, ...]
    labels: Mapping[str, int]
    seed: int
    fold: int

    def training(self, epoch: int, *, balanced: bool, max_patches: int) -> Bags:
        """Bags of ``epoch``, at most ``max_patches`` patches each; the same for every call."""
        seeds = (self.seed, self.fold, epoch)
        order = epoch_order([self.labels[s] for s in self.train], balanced, stream("bags", *seeds))
        return Bags(self.reader, [self.train[i] for i in order], self.labels, max_patches, seeds)

    def validation(self) -> Bags:
        """All validation bags, whole."""
        return Bags(self.reader, self.val, self.labels)
