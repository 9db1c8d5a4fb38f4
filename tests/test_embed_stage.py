"""``wsi embed``: bags from grids, computed once, and again exactly when an input of theirs has changed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsi_pipeline.artifacts import Provenance, read_key
from wsi_pipeline.config import Config, EngineConfig, build_config
from wsi_pipeline.embed import Encoder, encoders
from wsi_pipeline.embed.state import seeded
from wsi_pipeline.embed.weights import RANDOM
from wsi_pipeline.engine import Engine, Failure
from wsi_pipeline.errors import WsiError
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import open_project
from wsi_pipeline.store import read_bag, write_grid
from wsi_pipeline.types import PatchGrid, TissueMask

SIDE = 32
TINY = f"{__name__}:tiny"


def tiny(weights: Path | None, pretrained: bool, *, dim: int = 6, mpp: float = 0.5) -> Encoder:
    """A user's own encoder, named as 'package.module:function'."""
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, dim, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()
    return Encoder("tiny", module, dim, SIDE, mpp, (0.5,) * 3, (0.25,) * 3, RANDOM)


def write_slide(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (3 * SIDE, 4 * SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_config(folder: Path, *overrides: str) -> Config:
    data: dict[str, Any] = {
        "slides": "slides.csv",
        "out": "run",
        "embed": {"encoder": TINY, "pretrained": False, "batch": 5, "dtype": "float32"},
    }
    return build_config(data, list(overrides), base=folder, source="test")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two slides as PNG, of known mpp, and their grids of twelve patches."""
    names = ("a", "b")
    for i, name in enumerate(names):
        write_slide(tmp_path / f"{name}.png", i)
        put_grid(tmp_path, name, f"grid of {name}")
    (tmp_path / "slides.csv").write_text("path,mpp\n" + "".join(f"{name}.png,0.5\n" for name in names))
    return tmp_path


def put_grid(folder: Path, name: str, key: str, side_px: int = SIDE) -> None:
    grid = PatchGrid(
        slide_id=name,
        xy_px0=np.array([(x, y) for y in range(0, 3 * SIDE, SIDE) for x in range(0, 4 * SIDE, SIDE)], np.int64),
        side_px=side_px,
        side_px0=(float(SIDE), float(SIDE)),
        stride_px0=(float(SIDE), float(SIDE)),
        target_mpp=0.5 * SIDE / side_px,
        mpp=(0.5, 0.5),
        slide_size_px0=(4 * SIDE, 3 * SIDE),
        bounds_px0=(0, 0, 4 * SIDE, 3 * SIDE),
    )
    mask = TissueMask(np.ones((3, 4), bool), (float(SIDE), float(SIDE)))
    write_grid(folder / "run" / "tile" / f"{name}.h5", grid, mask, Provenance.of(key, "tile"))


def embed(folder: Path, *overrides: str) -> list[Failure]:
    config = make_config(folder, *overrides)
    with Engine(EngineConfig(), config.out) as engine:
        run_stage("embed", open_project(config), engine)
        return engine.failures


def bags(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((folder / "run" / "embed").glob("*.h5"))}


def keys(folder: Path) -> dict[str, str | None]:
    return {path.stem: read_key(path) for path in sorted((folder / "run" / "embed").glob("*.h5"))}


def test_a_bag_contains_the_features_of_the_slides_patches(study: Path) -> None:
    assert embed(study) == []
    bag = read_bag(study / "run" / "embed" / "b.h5")
    pixels = torch.from_numpy(np.asarray(Image.open(study / "b.png"), np.float32).copy())
    module = tiny(None, False).module
    for features, (x, y) in zip(bag.features, bag.grid.xy_px0.tolist(), strict=True):
        patch = (pixels[y : y + SIDE, x : x + SIDE].permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        with torch.inference_mode():
            np.testing.assert_allclose(features, module(patch)[0].numpy(), atol=1e-5)
    assert bag.features.shape == (12, 6)
    assert (bag.encoder, bag.weights_digest) == ("tiny", "random")


def test_a_second_run_changes_no_file(study: Path) -> None:
    embed(study)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (study / "run").rglob("*")}
    assert embed(study) == []
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (study / "run").rglob("*")} == before


def test_the_number_of_threads_is_not_in_the_key(study: Path) -> None:
    embed(study)
    before = {path: path.stat().st_ino for path in (study / "run" / "embed").iterdir()}
    embed(study, "embed.threads=2", "embed.read_threads=3")
    assert {path: path.stat().st_ino for path in (study / "run" / "embed").iterdir()} == before


def test_threads_and_cores_change_no_byte(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(study, "embed.threads=1", "embed.read_threads=1")
    expected = bags(study)
    for path in (study / "run" / "embed").glob("*.h5"):
        path.unlink()
    monkeypatch.setenv("WSI_WORKER_CORES", "3")
    embed(study)
    assert bags(study) == expected


@pytest.mark.parametrize(
    "override",
    [
        "embed.dtype=float16",
        "embed.batch=6",
        "embed.precision=bf16",
        "embed.channels_last=false",
        "embed.device=cpu",
        "embed.encoder_options={dim: 7}",
        "read.reader=image",
    ],
)
def test_the_key_changes_with_everything_that_the_features_depend_on(override: str, study: Path) -> None:
    embed(study)
    before = keys(study)
    assert embed(study, override) == []
    after = keys(study)
    assert all(before[name] != after[name] for name in ("a", "b"))


def test_a_new_grid_makes_one_new_bag(study: Path) -> None:
    embed(study)
    before = keys(study)
    put_grid(study, "b", "another grid")
    embed(study)
    assert keys(study)["a"] == before["a"]
    assert keys(study)["b"] != before["b"]


def test_the_key_depends_on_the_bytes_of_the_weights_and_not_on_their_path(study: Path) -> None:
    network = ("embed.encoder=timm:test_resnet", "embed.pretrained=true")
    module = encoders.build("timm:test_resnet", None, False).module
    for name in ("here.pth", "there.pth"):
        torch.save(module.state_dict(), study / name)
    (study / "there.pth").write_bytes((study / "here.pth").read_bytes())
    embed(study, *network, f"embed.weights={study / 'here.pth'}")
    before = bags(study)
    embed(study, *network, f"embed.weights={study / 'there.pth'}")
    assert bags(study) == before
    for value in module.state_dict().values():
        value.add_(1)
    torch.save(module.state_dict(), study / "here.pth")
    embed(study, *network, f"embed.weights={study / 'here.pth'}")
    assert all(bags(study)[name] != before[name] for name in ("a", "b"))


def test_the_bag_records_its_provenance(study: Path) -> None:
    put_grid(study, "a", "smaller patches", side_px=SIDE // 2)
    embed(study)
    with h5py.File(study / "run" / "embed" / "a.h5") as file:
        made_by = json.loads(file.attrs["made_by"])
    assert made_by["encoder"] == {"name": TINY, "options": {}, "weights": "random"}
    assert made_by["recommended_mpp"] == 0.5
    assert made_by["resized_to_px"] == SIDE
    assert "weights" not in made_by["config"]
    with h5py.File(study / "run" / "embed" / "b.h5") as file:
        assert json.loads(file.attrs["made_by"])["resized_to_px"] is None


def test_another_mpp_than_the_encoders_is_warned_of(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wsi_pipeline"):
        embed(study)
        assert caplog.messages == []
        embed(study, "embed.encoder_options={mpp: 0.54}")
        assert caplog.messages == []  # within a tenth
        embed(study, "embed.encoder_options={mpp: 0.25}")
    assert caplog.messages == [
        f"the slides are tiled at 0.5 µm/px, but the encoder {TINY} is made for 0.25; "
        "--set tile.mpp=0.25 unless you mean it"
    ]


def test_a_slide_without_a_grid_and_a_damaged_slide_fail_by_themselves(study: Path) -> None:
    (study / "run" / "tile" / "a.h5").unlink()
    (study / "b.png").write_bytes(b"not an image")
    failures = embed(study)
    assert [(f.slide_id, f.stage) for f in failures] == [("a", "embed"), ("b", "embed")]
    assert "run `wsi tile` first" in failures[0].message
    assert bags(study) == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("embed.encoder=resnet51", "did you mean 'resnet50'"),
        ("embed.encoder_options={colour: 1}", "has no option 'colour'; it takes: dim, mpp"),
        ("embed.device=cuda:99", "is not available"),
        ("embed.weights=nowhere.pth", "drop one of them"),
    ],
)
def test_an_error_that_the_user_must_fix_stops_the_run(override: str, words: str, study: Path) -> None:
    base = [] if "weights" not in override else ["embed.encoder=lite0"]
    with pytest.raises(WsiError) as caught:
        embed(study, *base, override)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_default_encoder_works_without_a_network(study: Path) -> None:
    assert embed(study, "embed.encoder=lite0", "embed.pretrained=true", "embed.batch=6") == []
    bag = read_bag(study / "run" / "embed" / "a.h5")
    assert bag.features.shape == (12, 1280)
    assert bag.weights_digest.startswith("57934424")
