"""Encoding: in the grid's order, the same bytes for any number of threads, bounded memory, no invented patch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.config import EmbedConfig
from wsi_pipeline.embed import Encoder
from wsi_pipeline.embed.encoder_runner import EncoderRunner, Pending
from wsi_pipeline.embed.encoding import encode_batches, encoding_depth, stored
from wsi_pipeline.embed.prefetch import Patches
from wsi_pipeline.embed.stage import write_bag
from wsi_pipeline.embed.state import seeded
from wsi_pipeline.errors import ConfigError, RegionError, SlideError
from wsi_pipeline.read import Batches, read_batches
from wsi_pipeline.read.batch_reader import prefetch_depth
from wsi_pipeline.store import read_bag
from wsi_pipeline.types import Box, Float32, PatchGrid, UInt8

CPU = torch.device("cpu")
PROVENANCE = Provenance.of("key", "embed")
SIDE = 16


def network() -> nn.Module:
    """Convolutions, a norm and a linear layer: operators that torch divides among its threads."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 40),
    )


def make_encoder(side_px: int = SIDE) -> Encoder:
    return Encoder(
        name="tiny",
        module=seeded(network).eval().requires_grad_(False),
        dim=40,
        side_px=side_px,
        recommended_mpp=0.5,
        mean=(0.7, 0.6, 0.7),
        std=(0.2, 0.25, 0.15),
        weights_digest="random",
    )


@dataclass
class MemorySlide:
    """A slide of one level in memory; reading any of ``broken`` fails."""

    pixels: UInt8  # (h, w, 3)
    broken: tuple[Box, ...] = ()
    path: Path = Path("memory.svs")
    reader: str = "memory"
    vendor: str = "test"
    downsamples: tuple[float, ...] = (1.0,)
    mpp: tuple[float, float] = (0.5, 0.5)
    mpp_source: str = "given"
    rejected_readers: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = field(init=False)
    bounds_px0: Box = field(init=False)

    def __post_init__(self) -> None:
        height, width, _ = self.pixels.shape
        self.sizes = ((width, height),)
        self.bounds_px0 = (0, 0, width, height)

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        (x, y), (width, height) = xy_px0, size
        for left, top, w, h in self.broken:
            if x < left + w and left < x + width and y < top + h and top < y + height:
                raise RegionError(f"memory.svs: the region at ({x}, {y}) cannot be decoded")
        return self.pixels[y : y + height, x : x + width]

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


@dataclass
class ScriptedSlide(MemorySlide):
    """A slide whose patches are computed by a function of their corner."""

    script: Callable[[tuple[int, int]], UInt8] = field(kw_only=True)

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        return self.script(xy_px0)


def patches_of(slide: MemorySlide, threads: int = 2) -> Batches:
    return read_batches(slide, grid_of(slide), batch=4, threads=threads)


def make_slide(columns: int = 7, rows: int = 5, broken: tuple[Box, ...] = ()) -> MemorySlide:
    pixels = np.random.default_rng(0).integers(0, 256, (rows * SIDE, columns * SIDE, 3), dtype=np.uint8)
    return MemorySlide(pixels, broken)


def grid_of(slide: MemorySlide, side: int = SIDE) -> PatchGrid:
    (width, height) = slide.sizes[0]
    xy = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
    return PatchGrid(
        slide_id="s1",
        xy_px0=np.array(xy, np.int64),
        side_px=side,
        side_px0=(float(side), float(side)),
        stride_px0=(float(side), float(side)),
        target_mpp=0.5,
        mpp=(0.5, 0.5),
        slide_size_px0=(width, height),
        bounds_px0=slide.bounds_px0,
    )


def config(**changes: object) -> EmbedConfig:
    return EmbedConfig.model_validate({"batch": 4, "dtype": "float32", "threads": 2, "pretrained": False, **changes})


def one_by_one(slide: MemorySlide, grid: PatchGrid, encoder: Encoder) -> Float32:
    """The definition: each patch alone, normalised by numpy, in the grid's order."""
    features = []
    for x, y in grid.xy_px0.tolist():
        patch = slide.pixels[y : y + grid.side_px, x : x + grid.side_px].astype(np.float64) / 255
        normal = (patch - np.array(encoder.mean)) / np.array(encoder.std)
        with torch.inference_mode():
            features.append(encoder.module(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float())[0].numpy())
    return np.stack(features)


def no_features(pixels: UInt8) -> Pending:
    return Pending(torch.zeros(len(pixels), 1))


def embed(slide: MemorySlide, folder: Path, settings: EmbedConfig, encoder: Encoder | None = None) -> Path:
    path = folder / "bag.h5"
    runner = EncoderRunner(encoder or make_encoder(), CPU, settings)
    with Patches.of(slide, grid_of(slide), runner, settings) as patches:
        write_bag(path, patches, runner, settings, PROVENANCE)
    return path


def test_features_equal_those_of_each_patch_alone_in_the_grids_order(tmp_path: Path) -> None:
    slide = make_slide()
    bag = read_bag(embed(slide, tmp_path, config()))
    np.testing.assert_allclose(bag.features, one_by_one(slide, grid_of(slide), make_encoder()), atol=2e-5)
    np.testing.assert_array_equal(bag.grid.xy_px0, grid_of(slide).xy_px0)
    assert (bag.encoder, bag.weights_digest) == ("tiny", "random")
    assert len(bag.unreadable_px0) == 0


@pytest.mark.parametrize(
    ("read_threads", "threads", "outside"), [(1, 1, 1), (3, 1, 1), (1, 2, 1), (3, 5, 1), (2, 2, 2), (1, 1, 2)]
)
def test_threads_change_no_byte(read_threads: int, threads: int, outside: int, tmp_path: Path) -> None:
    """``outside``: torch's default number of threads, as set by OMP_NUM_THREADS."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = embed(make_slide(), tmp_path / "a", config(threads=1, read_threads=1)).read_bytes()
    before = torch.get_num_threads()
    torch.set_num_threads(outside)
    try:
        found = embed(make_slide(), tmp_path / "b", config(threads=threads, read_threads=read_threads)).read_bytes()
        assert torch.get_num_threads() == outside
        in_new_thread: list[int] = []
        late = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
        late.start()
        late.join()
        assert in_new_thread == [outside]  # the default of threads that start later is restored
    finally:
        torch.set_num_threads(before)
    assert found == expected


def test_each_encoding_thread_computes_with_one_thread_of_torch() -> None:
    slide = make_slide()
    seen: list[tuple[int, str]] = []

    def encode(pixels: UInt8) -> Pending:
        seen.append((torch.get_num_threads(), threading.current_thread().name))
        time.sleep(0.01)
        return Pending(torch.zeros(len(pixels), 1))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(encode_batches(patches_of(slide, 1), encode, threads=3))
    finally:
        torch.set_num_threads(before)
    assert {count for count, _ in seen} == {1}
    assert 1 < len({name for _, name in seen}) <= 3


def test_batches_are_in_order_although_reading_and_encoding_finish_in_any_order() -> None:
    delays = np.random.default_rng(1).uniform(0, 0.01, 1000).tolist()

    def read(xy: tuple[int, int]) -> UInt8:
        time.sleep(delays[xy[0] % 1000])
        return np.full((SIDE, SIDE, 3), xy[1] // SIDE * 7 + xy[0] // SIDE, np.uint8)

    def encode(pixels: UInt8) -> Pending:
        time.sleep(delays[int(pixels[0, 0, 0, 0])] * 3)
        return Pending(torch.from_numpy(pixels[:, 0, 0, :1].astype(np.float32)))

    slide = ScriptedSlide(make_slide().pixels, script=read)
    batches = list(encode_batches(patches_of(slide, 3), encode, threads=3))
    assert [len(done.features) for done in batches] == [4, 4, 4, 4, 4, 4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([done.features for done in batches])[:, 0], np.arange(35))


@pytest.mark.parametrize(("threads", "read_threads"), [(1, 1), (2, 3)])
def test_memory_depends_on_the_threads_and_not_on_the_slide(threads: int, read_threads: int) -> None:
    """A slow consumer behind a fast reader: the number of batches in memory stays bounded."""
    whole = make_slide(columns=40)
    begun, most, taken = 0, 0, 0
    lock = threading.Lock()

    def read(xy: tuple[int, int]) -> UInt8:
        nonlocal begun, most
        if (xy[1] // SIDE * 40 + xy[0] // SIDE) % 4 == 0:  # the first of its batch
            with lock:
                begun += 1
                most = max(most, begun - taken)
        return whole.read(xy, 0, (SIDE, SIDE))

    slide = ScriptedSlide(whole.pixels, script=read)
    for _ in encode_batches(patches_of(slide, read_threads), no_features, threads):
        time.sleep(0.002)
        with lock:
            taken += 1
    assert begun == taken == 50
    assert 1 < most <= prefetch_depth(4, read_threads) + encoding_depth(threads) < 30


def test_the_waiting_time_of_the_device_is_reported(tmp_path: Path) -> None:
    """A slow reader before a fast encoder, and the reverse."""
    pixels = make_slide().pixels

    def waited(read_s: float, encode_s: float) -> float:
        def read(xy: tuple[int, int]) -> UInt8:
            time.sleep(read_s)
            return np.zeros((SIDE, SIDE, 3), np.uint8)

        encoder = replace(make_encoder(), module=Slow(encode_s))
        settings = config(threads=1, read_threads=1)
        runner = EncoderRunner(encoder, CPU, settings)
        slide = ScriptedSlide(pixels, script=read)
        with Patches.of(slide, grid_of(slide), runner, settings) as patches:
            made = write_bag(tmp_path / "bag.h5", patches, runner, settings, PROVENANCE)
        assert made.units == 35
        return made.waited_s / made.worked_s

    assert waited(0.004, 0) > 0.7
    assert waited(0, 0.02) < 0.4


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.zeros(len(x), 40)


def test_closing_early_stops_the_threads() -> None:
    before = threading.active_count()
    patches = patches_of(make_slide(columns=40))
    features = encode_batches(patches, no_features, threads=2)
    next(features)
    assert threading.active_count() > before
    features.close()
    patches.close()
    assert threading.active_count() == before


# --- unreadable patches, and features that are not finite ----------------------------------------------------


def test_unreadable_patches_are_left_out_and_listed(tmp_path: Path) -> None:
    intact, broken = make_slide(), make_slide(broken=((3 * SIDE + 5, 2, 1, 1), (0, 2 * SIDE, 6 * SIDE, SIDE)))
    grid = grid_of(intact)
    lost = np.array([3, *range(14, 20)])  # one patch of the first batch; all of the fifth, part of its neighbours
    kept = np.setdiff1d(np.arange(35), lost)
    bag = read_bag(embed(broken, tmp_path, config()))
    np.testing.assert_array_equal(bag.unreadable_px0, grid.xy_px0[lost])
    np.testing.assert_array_equal(bag.grid.xy_px0, grid.xy_px0[kept])
    np.testing.assert_allclose(bag.features, one_by_one(intact, grid, make_encoder())[kept], atol=2e-5)


def test_a_slide_without_a_readable_patch_fails_and_leaves_no_bag(tmp_path: Path) -> None:
    slide = make_slide(broken=((0, 0, 7 * SIDE, 5 * SIDE),))
    with pytest.raises(SlideError, match=r"memory\.svs: none of its 35 patches can be read"):
        embed(slide, tmp_path, config())
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_a_regions_ends_the_slide(tmp_path: Path) -> None:
    def read(xy: tuple[int, int]) -> UInt8:
        raise SlideError("memory.svs: the disk is gone")

    slide = ScriptedSlide(make_slide().pixels, script=read)
    with pytest.raises(SlideError, match="the disk is gone"):
        list(encode_batches(patches_of(slide), no_features, threads=1))


def test_a_batch_contains_only_the_readable_patches() -> None:
    slide = make_slide(broken=((SIDE, 0, 1, 1),))
    batch = next(patches_of(slide))
    assert batch.readable.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(batch.pixels[1], slide.pixels[:SIDE, 2 * SIDE : 3 * SIDE])
    assert batch.pixels.shape == (3, SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.nan, "float32", "contain NaN or infinity; --set embed.precision=fp32"),
        (np.inf, "float16", "contain NaN or infinity"),
        (70_000.0, "float16", "are too large for float16; --set embed.dtype=float32"),
    ],
)
def test_a_feature_that_is_not_finite_is_an_error_that_names_the_patch(value: float, dtype: str, words: str) -> None:
    features = np.ones((3, 5), np.float32)
    features[1, 2] = value
    with pytest.raises(SlideError) as caught:
        stored(features, dtype, "s1", np.array([[0, 0], [16, 32], [32, 32]], np.int64))
    assert str(caught.value).startswith("s1: the encoder's features of the patch at (16, 32) ")
    assert words in str(caught.value)


def test_features_are_stored_in_the_configured_type(tmp_path: Path) -> None:
    path = embed(make_slide(), tmp_path, config(dtype="float16"))
    with h5py.File(path) as file:
        assert file["features"].dtype == np.float16
        assert file["features"].shape == (35, 40)


# --- on the device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "limit"), [(37, 1.5), (16, 0.0), (9, 1.5)])
def test_patches_of_another_side_are_resized_as_pillow_does(side: int, limit: float) -> None:
    """To within the rounding of Pillow, which stores bytes between its two passes (hence inputs without overshoot)."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(80, 176, (2, side, side, 3), dtype=np.uint8)
    encoder = make_encoder(side_px=16)
    prepared = EncoderRunner(encoder, CPU, config()).prepare(torch.from_numpy(pixels))
    assert prepared.shape == (2, 3, 16, 16)
    found = (prepared.permute(0, 2, 3, 1).numpy() * np.array(encoder.std) + np.array(encoder.mean)) * 255
    resized = [np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BICUBIC), np.float64) for p in pixels]
    assert np.abs(found - np.stack(resized)).max() <= limit + 1e-3


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_changes_no_feature(channels_last: bool, tmp_path: Path) -> None:
    slide = make_slide()
    bag = read_bag(embed(slide, tmp_path, config(channels_last=channels_last)))
    np.testing.assert_allclose(bag.features, one_by_one(slide, grid_of(slide), make_encoder()), atol=2e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_lower_precision_is_close_and_not_equal(precision: str, tolerance: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    exact = EncoderRunner(make_encoder(), CPU, config())(pixels).result()
    found = EncoderRunner(make_encoder(), CPU, config(precision=precision))(pixels).result()
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < tolerance


def test_a_compiled_encoder_gets_one_shape_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the kernel of a batch would depend on the slides that this process embedded before."""
    shapes: list[tuple[int, ...]] = []

    def recorded(module: nn.Module, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        assert not dynamic

        def call(x: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(x.shape))
            features: torch.Tensor = module(x)
            return features

        return call

    monkeypatch.setattr(torch, "compile", recorded)
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    compiled = EncoderRunner(make_encoder(), CPU, config(compile=True))
    short, full = compiled(pixels[:3]).result(), compiled(pixels).result()
    assert set(shapes) == {(4, 3, SIDE, SIDE)}
    assert short.shape == (3, 40)
    np.testing.assert_array_equal(short, full[:3])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own use
def test_a_compiled_encoder_gives_the_same_features() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    plain = EncoderRunner(make_encoder(), CPU, config())(pixels).result()
    compiled = EncoderRunner(make_encoder(), CPU, config(compile=True))
    np.testing.assert_allclose(compiled(pixels).result(), plain, atol=2e-5)
    np.testing.assert_allclose(compiled(pixels[:3]).result(), plain[:3], atol=2e-5)


def test_a_compiler_error_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module, dynamic: bool) -> Callable[..., object]:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"torch\.compile fails here \(no C\+\+ compiler\).*embed\.compile=false"):
        EncoderRunner(make_encoder(), CPU, config(compile=True))


def test_a_batch_too_large_for_the_device_is_reported_in_one_line() -> None:
    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = Encoder("greedy", Greedy(), 1, SIDE, 0.5, (0.5,) * 3, (0.5,) * 3, "random")
    with pytest.raises(ConfigError, match=r"4 patches at once do not fit .*use a smaller embed\.batch"):
        EncoderRunner(encoder, CPU, config())(np.zeros((4, SIDE, SIDE, 3), np.uint8))
