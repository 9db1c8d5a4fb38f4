"""Training data: bags of one kind, samples determined by seed, fold, epoch and slide, and balanced classes.

Other tests import ``planted_project``: small bags in which class "tumour" means a few evidence patches.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_pipeline.artifacts import Provenance, content_key
from wsi_pipeline.config import build_config
from wsi_pipeline.errors import ArtifactError
from wsi_pipeline.project import Project, RunFolder
from wsi_pipeline.rng import generator_for
from wsi_pipeline.store import BagWriter
from wsi_pipeline.train.data import BagReader, FoldData, Sampling
from wsi_pipeline.train.sampling import epoch_order, patch_rows
from wsi_pipeline.types import Float32, PatchGrid, SlideRow

DIM, PATCHES, EVIDENCE = 32, 40, 4
MODEL = {"name": "abmil", "options": {"hidden": 16, "attention_dim": 8}}


def grid(slide_id: str, patches: int = PATCHES, *, mpp: float = 0.5, side_px: int = 224) -> PatchGrid:
    """Patches in rows of eight on a slide of 0.5 µm/px."""
    index = np.arange(patches)
    side = side_px * mpp / 0.5
    xy = np.stack([index % 8, index // 8], axis=1) * round(side)
    size = (round(8 * side), round((patches // 8 + 1) * side))
    return PatchGrid(
        slide_id, xy.astype(np.int64), side_px, (side, side), (side, side), mpp, (0.5, 0.5), size, (0, 0, *size)
    )


def write_bag(path: Path, features: Float32, *, encoder: str = "lite0", digest: str = "d0", **of_grid: Any) -> None:
    """A bag as the embed stage writes it; its key depends on its content."""
    slide_grid = grid(path.stem, len(features), **of_grid)
    key = content_key(stage="embed", features=features.tobytes().hex(), encoder=encoder, digest=digest)
    with BagWriter(path, slide_grid, features.shape[1], "float16") as writer:
        writer.append(features)
        writer.finish(np.ones(len(features), bool), encoder, digest, Provenance.of(key, "embed"))


def planted_features(slide_id: str, positive: bool) -> Float32:
    """Noise (PATCHES, DIM); in a positive bag EVIDENCE patches stand out in four of the dimensions."""
    generator = np.random.default_rng([positive, *slide_id.encode()])
    features = generator.standard_normal((PATCHES, DIM)).astype(np.float32)
    if positive:
        features[generator.choice(PATCHES, EVIDENCE, replace=False), :4] += 3.0
    return features


def planted_project(out: Path, slides: int = 24, **sections: Any) -> Project:
    """Slides s00, s01, …; every second one is a tumour; s00 and s02 share a patient, and so do s01 and s03."""
    shared = {"s02": "p00", "s03": "p01"}
    rows = []
    for i in range(slides):
        slide_id, label = f"s{i:02d}", ("normal", "tumour")[i % 2]
        rows.append(SlideRow(slide_id, Path(f"{slide_id}.svs"), shared.get(slide_id, f"p{i:02d}"), label))
        write_bag(RunFolder(out).bag(slide_id), planted_features(slide_id, label == "tumour"))
    data: dict[str, Any] = {"slides": "slides.csv", "out": str(out), "aggregate": {"models": [MODEL]}}
    data["train"] = {"folds": 2, "epochs": 12, "lr": 5e-3, "warmup_epochs": 1, **sections.pop("train", {})}
    return Project(build_config(data | sections, [], base=out, source="test"), tuple(rows), tuple(rows))


def test_balanced_epochs_have_every_class_equally_often_and_every_bag_of_a_rare_class() -> None:
    labels = [0] * 9 + [1] * 2
    for epoch in range(20):
        order = epoch_order(labels, True, generator_for(epoch))
        shown = Counter(order)
        assert Counter(labels[i] for i in order) == {0: 6, 1: 6}  # ceil(11 / 2) each
        assert (shown[9], shown[10]) == (3, 3)
        assert max(shown[i] for i in range(9)) == 1


def test_over_many_epochs_every_bag_of_a_class_is_used() -> None:
    labels = [0] * 9 + [1] * 2
    assert {i for epoch in range(20) for i in epoch_order(labels, True, generator_for(epoch))} == set(range(11))


def test_unbalanced_epochs_use_every_bag_once() -> None:
    order = epoch_order([0] * 9 + [1] * 2, False, generator_for(0))
    assert sorted(order) == list(range(11))
    assert order != list(range(11))


def test_sampled_patches_are_in_grid_order_without_repetition() -> None:
    rows = patch_rows(1000, 100, generator_for(0))
    assert rows is not None
    assert len(rows) == 100
    assert (np.diff(rows) > 0).all()
    assert rows[0] < 100 < 900 < rows[-1] < 1000
    assert patch_rows(100, 100, generator_for(0)) is None


def test_generators_depend_on_all_their_parts_and_on_nothing_else() -> None:
    assert generator_for("bags", 0, 1).integers(2**62) == generator_for("bags", 0, 1).integers(2**62)
    parts: list[tuple[object, ...]] = [("bags", 0, 1), ("bags", 1, 0), ("patches", 0, 1), ("bags", -1, 0), ("bags", 1)]
    assert len({int(generator_for(*p).integers(2**62)) for p in parts}) == 5


@pytest.fixture
def fold(tmp_path: Path) -> FoldData:
    paths = {s: tmp_path / f"{s}.h5" for s in ("n1", "n2", "t1", "v1")}
    for slide_id, path in paths.items():
        write_bag(path, planted_features(slide_id, slide_id == "t1"))
    targets = {s: (float(s == "t1"),) for s in paths}
    return FoldData(BagReader(paths), ("n1", "n2", "t1"), ("v1",), targets, 7, 2)


def test_an_epoch_is_the_same_for_every_call_in_any_order(fold: FoldData) -> None:
    later = [b.features.numpy() for (b,) in fold.training(1, balanced=True, sampling=Sampling(5))]
    first = [b.features.numpy() for (b,) in fold.training(0, balanced=True, sampling=Sampling(5))]
    again = [b.features.numpy() for (b,) in fold.training(0, balanced=True, sampling=Sampling(5))]
    assert len(first) == 4  # ceil(3 / 2) of each class
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, later, strict=True))


def test_features_and_positions_of_sampled_patches_correspond(fold: FoldData) -> None:
    whole = {
        row.tobytes(): tuple(xy) for (b,) in fold.validation() for row, xy in zip(*map(np.asarray, b[:2]), strict=True)
    }
    bags = FoldData(fold.reader, ("v1",), ("v1",), fold.targets, 0, 0)
    ((sample,),) = bags.training(0, balanced=False, sampling=Sampling(7))
    assert sample.features.shape == (7, DIM)
    for row, xy in zip(sample.features.numpy(), sample.xy.numpy(), strict=True):
        assert whole[row.tobytes()] == tuple(xy)


def test_validation_uses_whole_bags_as_stored_with_positions_in_strides(fold: FoldData) -> None:
    ((bag,),) = fold.validation()
    assert bag.target.tolist() == [0.0]
    assert np.array_equal(bag.features.numpy(), planted_features("v1", False).astype(np.float16))
    assert bag.xy.tolist() == [[i % 8, i // 8] for i in range(PATCHES)]


def test_bags_are_the_same_with_and_without_the_cache(tmp_path: Path) -> None:
    write_bag(tmp_path / "s.h5", planted_features("s", True))
    cached, uncached = BagReader({"s": tmp_path / "s.h5"}), BagReader({"s": tmp_path / "s.h5"}, cache_bytes=0)
    assert cached("s") is cached("s")
    assert uncached("s") is not uncached("s")
    assert np.array_equal(cached("s").features, uncached("s").features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "uni"}, "b.h5 has encoder 'uni', but .*a.h5 has 'lite0'; run `wsi tile` and `wsi embed`"),
        ({"digest": "d1"}, "b.h5 has weights_digest 'd1'"),
        ({"mpp": 1.0}, "b.h5 has target_mpp 1.0"),
        ({"side_px": 256}, "b.h5 has side_px 256"),
    ],
)
def test_bags_of_different_kinds_are_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_bag(tmp_path / "a.h5", planted_features("a", True))
    write_bag(tmp_path / "b.h5", planted_features("b", True), **change)
    reader = BagReader({s: tmp_path / f"{s}.h5" for s in "ab"})
    with pytest.raises(ArtifactError, match=message):
        reader("b")


def test_bags_of_another_dimension_and_unusable_bags_are_rejected(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", planted_features("a", True))
    write_bag(tmp_path / "b.h5", planted_features("b", True)[:, :16])
    with BagWriter(tmp_path / "c.h5", grid("c"), DIM, "float16") as writer:  # every patch was unreadable
        writer.finish(np.zeros(PATCHES, bool), "lite0", "d0", Provenance.of("k", "embed"))
    overflowed = planted_features("d", True)
    overflowed[3, 5] = np.inf
    write_bag(tmp_path / "d.h5", overflowed)
    reader = BagReader({s: tmp_path / f"{s}.h5" for s in "abcd"})
    with pytest.raises(ArtifactError, match=r"b.h5 has dim 16, but .*a.h5 has 32"):
        reader("b")
    with pytest.raises(ArtifactError, match=r"c.h5 holds no patch"):
        reader("c")
    with pytest.raises(ArtifactError, match=r"d.h5 has features that are .*, first in row 3 of 40"):
        reader("d")
