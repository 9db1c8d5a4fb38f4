"""The fast reader gives OpenSlide's pixels or leaves the file to OpenSlide, and decodes each tile once."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from tifffile import TiffFile, TiffWriter

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.errors import RegionError, SlideError
from wsi_pipeline.read import open_slide, read_batches, read_patch, readers
from wsi_pipeline.read.jpeg_tiles import TileLevel
from wsi_pipeline.read.patch_geometry import patch_level, patch_tiles
from wsi_pipeline.read.slide import tile_levels
from wsi_pipeline.types import PatchGrid, Slide, UInt8

FAST, OPENSLIDE = ReadConfig(reader="jpeg_tiff", mpp=0.25), ReadConfig(reader="openslide", mpp=0.25)
APERIO = "Aperio Image Library v12.0.0 \n{0}x{1} [0,0 {0}x{1}] ({2}x{2}) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"


def texture(height: int, width: int, seed: int = 0) -> UInt8:
    """Smooth colour with noise: JPEG preserves most of it, and no two tiles are equal."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 240, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels: UInt8 = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    return pixels


def write_slide(
    path: Path,
    *,
    size: tuple[int, int] = (500, 410),
    tile: int = 64,
    rgb: bool = False,
    subsampling: str = "420",
    downsamples: tuple[int, ...] = (1, 4),
    pixels: UInt8 | None = None,
    bigtiff: bool = False,
) -> Path:
    """A pyramid of JPEG tiles: Aperio's if the name ends in .svs, else generic. ``rgb``: stored without a transform.

    Without ``pixels``, a texture of ``size``.
    """
    svs = path.suffix == ".svs"
    pixels = texture(size[1], size[0]) if pixels is None else pixels
    with TiffWriter(path, bigtiff=bigtiff) as tiff:
        for downsample in downsamples:
            level = pixels if downsample == 1 else np.asarray(Image.fromarray(pixels).reduce(downsample))
            height, width = level.shape[:2]
            tiff.write(
                tiles_of(level, tile, rgb, subsampling),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb" if rgb else "ycbcr",
                subsampling=None
                if rgb
                else (int(subsampling[0]) // int(subsampling[1]), 2 - int(subsampling[2] != "0")),
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"} if rgb else None,
                subfiletype=0 if svs or downsample == 1 else 1,
                description=APERIO.format(width, height, tile) if svs else None,
                metadata=None,
                software=False,
            )
    return path


def tiles_of(level: UInt8, tile: int, rgb: bool, subsampling: str) -> Iterator[bytes]:
    for top, left in itertools.product(range(0, len(level), tile), range(0, level.shape[1], tile)):
        cell = level[top : top + tile, left : left + tile]
        cell = np.pad(cell, [(0, tile - cell.shape[0]), (0, tile - cell.shape[1]), (0, 0)], mode="edge")
        colour = "RGB" if rgb else "YCBCR"
        sampling = "444" if rgb else subsampling
        yield bytes(
            imagecodecs.jpeg8_encode(cell, level=80, colorspace="RGB", outcolorspace=colour, subsampling=sampling)
        )


def tile_place(path: Path, tile: int, page: int = 0) -> tuple[int, int]:
    with TiffFile(path) as tiff:
        return tiff.pages[page].dataoffsets[tile], tiff.pages[page].databytecounts[tile]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def without_tile(path: Path, tile: int, page: int = 0) -> Path:
    """The tile's length becomes zero in its directory."""
    with TiffFile(path) as tiff:
        tag = tiff.pages[page].aspage().tags["TileByteCounts"]
        place, kind = tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    overwrite(path, place + tile * kind, b"\0" * kind)
    return path


def grid_on(slide: Slide, side_px0: float, side_px: int, origin: tuple[int, int] = (7, 11)) -> PatchGrid:
    """Patches in rows, not aligned with the tiles, some of them reaching beyond the slide."""
    (width, height) = slide.sizes[0]
    step = int(side_px0)
    xy = [(x, y) for y in range(origin[1], height, step) for x in range(origin[0], width, step)]
    side = (side_px0, side_px0)
    mpp = 0.25 * side_px0 / side_px
    return PatchGrid("s", np.array(xy), side_px, side, side, mpp, (0.25, 0.25), slide.sizes[0], slide.bounds_px0)


def one_by_one(slide: Slide, grid: PatchGrid) -> UInt8:
    level = patch_level(slide, grid)
    corners = grid.xy_px0.tolist()
    return np.stack([read_patch(slide, (x, y), grid.side_px0, grid.side_px, level) for x, y in corners])


KINDS = [
    ("a.svs", True, "444"),
    ("a.svs", False, "420"),
    ("a.svs", False, "422"),
    ("a.tif", False, "420"),
    ("a.tif", False, "444"),
]


# --- the same pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rgb", "subsampling"), KINDS)
def test_the_pixels_equal_openslides(tmp_path: Path, name: str, rgb: bool, subsampling: str) -> None:
    path = write_slide(tmp_path / name, rgb=rgb, subsampling=subsampling)
    rng = np.random.default_rng(0)
    with open_slide(path, ReadConfig(mpp=0.25)) as fast, open_slide(path, OPENSLIDE) as plain:
        assert (fast.reader, plain.reader) == ("jpeg_tiff", "openslide")
        for fact in ("vendor", "sizes", "downsamples", "bounds_px0"):
            assert getattr(fast, fact) == getattr(plain, fact)
        for level, (width, height) in enumerate(fast.sizes):
            np.testing.assert_array_equal(
                fast.read((0, 0), level, (width, height)), plain.read((0, 0), level, (width, height))
            )
        for _ in range(30):  # level 0, inside and outside
            xy, size = rng.integers(-80, 500, 2).tolist(), rng.integers(1, 200, 2).tolist()
            np.testing.assert_array_equal(fast.read(tuple(xy), 0, tuple(size)), plain.read(tuple(xy), 0, tuple(size)))


def test_the_pixels_of_a_real_slide_equal_openslides(shared_data: Path) -> None:
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    with open_slide(path, ReadConfig()) as fast, open_slide(path, ReadConfig(reader="openslide")) as plain:
        assert fast.reader == "jpeg_tiff"
        np.testing.assert_array_equal(fast.read((0, 0), 0, fast.sizes[0]), plain.read((0, 0), 0, plain.sizes[0]))


def test_at_a_fractional_downsample_the_stored_pixels_are_returned(tmp_path: Path) -> None:
    """OpenSlide shifts them by the fraction; at the corner, where it shifts nothing, both agree."""
    path = write_slide(tmp_path / "a.tif", size=(502, 411))
    with open_slide(path, FAST) as fast, open_slide(path, OPENSLIDE) as plain, TiffFile(path) as tiff:
        assert fast.downsamples[1] != 4
        assert fast.sizes[1] == (126, 103)
        np.testing.assert_array_equal(fast.read((0, 0), 1, (60, 60)), plain.read((0, 0), 1, (60, 60)))
        stored = tiff.pages[1].asarray()
        for start in ((17, 40), (63, 64), (70, 2)):
            xy = round(start[0] * fast.downsamples[1]), round(start[1] * fast.downsamples[1])
            found = fast.read(xy, 1, (30, 30)).astype(int)
            assert np.abs(found - stored[start[1] : start[1] + 30, start[0] : start[0] + 30]).max() <= 4  # two decoders


def test_labels_are_never_read(shared_data: Path, tmp_path: Path) -> None:
    """Overwriting thumbnail, label and macro image changes nothing."""
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes())
    with TiffFile(path) as tiff:
        for page in list(tiff.pages)[1:]:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                overwrite(damaged, offset, b"\xaa" * count)
    with open_slide(path, ReadConfig()) as intact, open_slide(damaged, ReadConfig()) as slide:
        assert slide.reader == "jpeg_tiff"
        np.testing.assert_array_equal(slide.read((0, 0), 0, slide.sizes[0]), intact.read((0, 0), 0, intact.sizes[0]))


# --- files left to other readers -----------------------------------------------------------------------------


def reason(path: Path) -> str:
    with pytest.raises(SlideError) as caught:
        readers.build("jpeg_tiff", path)
    with open_slide(path, ReadConfig(mpp=0.25)) as slide:
        assert slide.reader != "jpeg_tiff"
    return str(caught.value)


def test_other_formats_are_left_to_other_readers(tmp_path: Path) -> None:
    png, deflate, strips = tmp_path / "a.png", tmp_path / "b.tif", tmp_path / "c.tif"
    Image.fromarray(texture(40, 40)).save(png)
    with TiffWriter(deflate) as tiff:
        tiff.write(texture(128, 128), tile=(64, 64), compression="deflate", photometric="rgb", metadata=None)
    with TiffWriter(strips) as tiff:
        tiff.write(texture(128, 128), compression="jpeg", photometric="rgb", metadata=None)
    assert "not a TIFF" in reason(png)
    assert "level 0 has no directory of JPEG tiles" in reason(deflate)
    assert reason(strips)


def test_jpeg_2000_is_left_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    with TiffWriter(path) as tiff:
        tiff.write(
            texture(128, 128),
            tile=(64, 64),
            compression=33005,
            photometric="rgb",
            metadata=None,
            description=APERIO.format(128, 128, 64),
        )
    assert "level 0 has no directory of JPEG tiles" in reason(path)


def test_a_file_with_a_wrong_colour_tag_is_left_to_openslide(tmp_path: Path) -> None:
    """Tiles in RGB with their own marker, under a tag that states YCbCr: decoders may disagree."""
    path = tmp_path / "a.tif"
    with TiffWriter(path) as tiff:
        tiff.write(
            tiles_of(texture(128, 128), 64, True, "444"),
            shape=(128, 128, 3),
            dtype=np.uint8,
            tile=(64, 64),
            photometric="ycbcr",
            subsampling=(1, 1),
            compression="jpeg",
            metadata=None,
        )
    assert "differ from OpenSlide's" in reason(path)


@pytest.mark.parametrize("level", [0, 1])
def test_levels_that_openslide_recomputes_from_finer_ones_are_left_to_it(tmp_path: Path, level: int) -> None:
    path = without_tile(write_slide(tmp_path / "a.svs"), 0, page=level)
    assert f"level {level} lacks tiles" in reason(path)


def test_an_offset_that_overflows_is_left_to_openslide(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", bigtiff=True)
    with TiffFile(path) as tiff:
        place = tiff.pages[0].aspage().tags["TileOffsets"].valueoffset
    overwrite(path, place + 9 * 8, b"\xff" * 8)
    assert "directories are damaged" in reason(path)


def test_openslide_can_be_chosen(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif")
    with open_slide(path, ReadConfig(reader="openslide", mpp=0.25)) as slide:
        assert slide.reader == "openslide"
        assert tile_levels(slide) == ()


# --- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "downsamples"), [("a.svs", (1,)), ("a.tif", (1, 4))])
def test_a_tile_that_is_not_stored_is_white(tmp_path: Path, name: str, downsamples: tuple[int, ...]) -> None:
    path = without_tile(write_slide(tmp_path / name, downsamples=downsamples), 9)  # column 1, row 1 of 8
    with open_slide(path, FAST) as slide, open_slide(path, OPENSLIDE) as plain:
        assert (slide.read((64, 64), 0, (64, 64)) == 255).all()
        np.testing.assert_array_equal(slide.read((0, 0), 0, slide.sizes[0]), plain.read((0, 0), 0, plain.sizes[0]))


DAMAGE: dict[str, Callable[[int, int], tuple[int, bytes]]] = {
    "zeroed": lambda offset, count: (offset, b"\0" * count),
    "truncated": lambda offset, count: (offset + count // 2, b"\0" * (count - count // 2)),
    "another image": lambda offset, count: (
        offset,
        bytes(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8))).ljust(count, b"\0")[:count],
    ),
}


@pytest.mark.parametrize("side_px", [40, 20])
@pytest.mark.parametrize("how", DAMAGE)
def test_only_the_patches_on_a_damaged_tile_are_lost(tmp_path: Path, how: str, side_px: int) -> None:
    intact, path = write_slide(tmp_path / "intact.tif"), write_slide(tmp_path / "a.tif")
    overwrite(path, *DAMAGE[how](*tile_place(path, 9)))
    with open_slide(path, FAST) as slide, open_slide(intact, FAST) as good:
        with pytest.raises(RegionError, match=r"a\.tif: level 0, the tile in column 1, row 1 cannot be decoded"):
            slide.read((100, 100), 0, (50, 50))
        np.testing.assert_array_equal(slide.read((128, 0), 0, (300, 300)), good.read((128, 0), 0, (300, 300)))
        grid = grid_on(slide, 40.0, side_px, origin=(6, 12))
        batches = list(read_batches(slide, grid, batch=5, threads=2))
        readable = np.concatenate([b.readable for b in batches])
        x, y = grid.xy_px0.T
        hit = (x < 128) & (x + 40 > 64) & (y < 128) & (y + 40 > 64)
        np.testing.assert_array_equal(readable, ~hit)
        np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), one_by_one(good, grid)[~hit])


def test_in_a_truncated_file_only_the_tiles_after_the_cut_are_lost(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", downsamples=(1,))
    with open_slide(path, FAST) as slide:
        (level,) = tile_levels(slide)
        with path.open("r+b") as file:
            file.truncate(int(level.offsets[30]) + 5)
        with pytest.raises(RegionError, match="column 6, row 3 cannot be decoded"):
            slide.read((6 * 64, 3 * 64), 0, (1, 1))
        assert slide.read((5 * 64, 3 * 64), 0, (1, 1)).shape == (1, 1, 3)


# --- many patches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("side_px0", "side_px"), [(64.0, 64), (128.0, 64), (100.3, 48), (300.0, 60)])
def test_batches_equal_the_patches_read_one_by_one(tmp_path: Path, threads: int, side_px0: float, side_px: int) -> None:
    path = write_slide(tmp_path / "a.svs", rgb=True)
    with open_slide(path, FAST) as slide:
        grid = grid_on(slide, side_px0, side_px)
        batches = list(read_batches(slide, grid, batch=7, threads=threads))
        assert all(b.readable.all() for b in batches)
        np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), one_by_one(slide, grid))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("factor", "origin", "in_tiles"),
    [(2, (14, 22), True), (4, (0, 0), True), (16, (32, 16), True), (2, (15, 22), False), (3, (3, 6), False)],
)
def test_squares_are_averaged_tile_by_tile_if_none_lies_across_two(
    tmp_path: Path, threads: int, factor: int, origin: tuple[int, int], in_tiles: bool
) -> None:
    path = write_slide(tmp_path / "a.tif", size=(501, 411), downsamples=(1,))  # its edges cross squares
    with open_slide(path, FAST) as slide:
        grid = grid_on(slide, 48.0 * factor, 48, origin)
        tiles = patch_tiles(slide, grid, "exact")
        assert tiles is not None
        assert (tiles.full is not None) == in_tiles
        found = np.concatenate([b.pixels for b in read_batches(slide, grid, batch=7, threads=threads)])
        np.testing.assert_array_equal(found, one_by_one(slide, grid))


def decoded(
    monkeypatch: pytest.MonkeyPatch, slide: Slide, grid: PatchGrid, tile_cache_mb: int
) -> tuple[Counter[int], UInt8]:
    counts: Counter[int] = Counter()
    lock = threading.Lock()
    original = TileLevel.decode

    def counting(self: TileLevel, tile: int, out: UInt8) -> None:
        with lock:
            counts[tile] += 1
        original(self, tile, out)

    with monkeypatch.context() as patch:
        patch.setattr(TileLevel, "decode", counting)
        batches = list(read_batches(slide, grid, batch=16, threads=2, tile_cache_mb=tile_cache_mb))
    return counts, np.concatenate([b.pixels for b in batches])


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool) -> None:
    path = write_slide(tmp_path / "a.tif", size=(1500, 700))
    with open_slide(path, FAST) as slide:
        grid = grid_on(slide, 100.0, 50)
        if shuffled:
            order = np.random.default_rng(0).permutation(len(grid))
            grid = PatchGrid(**{**vars(grid), "xy_px0": grid.xy_px0[order]})
        counts, pixels = decoded(monkeypatch, slide, grid, tile_cache_mb=512)
        (x, y), side = grid.xy_px0.T, 64
        touched = {
            row * 24 + column
            for left, top in zip(x.tolist(), y.tolist(), strict=True)
            for column in range(left // side, -(-min(left + 100, 1500) // side))
            for row in range(top // side, -(-min(top + 100, 700) // side))
        }
        assert set(counts) == touched
        assert set(counts.values()) == {1}
        np.testing.assert_array_equal(pixels, one_by_one(slide, grid))


def test_with_little_memory_tiles_are_decoded_again_and_the_pixels_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.tif", size=(6000, 500), tile=128)  # a row of tiles: 47 x 48 KB
    with open_slide(path, FAST) as slide:
        grid = grid_on(slide, 200.0, 100)
        few, pixels = decoded(monkeypatch, slide, grid, tile_cache_mb=1)
        many, expected = decoded(monkeypatch, slide, grid, tile_cache_mb=64)
        assert set(many.values()) == {1}
        assert max(few.values()) > 1
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("error", [SlideError("the disk is gone"), MemoryError()])
def test_an_error_that_is_not_a_regions_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decode(self: TileLevel, tile: int, out: UInt8) -> None:
        raise error

    with open_slide(write_slide(tmp_path / "a.tif"), FAST) as slide:
        monkeypatch.setattr(TileLevel, "decode", decode)
        with pytest.raises(type(error)):
            list(read_batches(slide, grid_on(slide, 64.0, 64), batch=9, threads=2))


def test_a_grid_in_any_order_gives_the_same_patches(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif")
    with open_slide(path, FAST) as slide:
        grid = grid_on(slide, 64.0, 64)
        order = np.random.default_rng(0).permutation(len(grid))
        shuffled = PatchGrid(**{**vars(grid), "xy_px0": grid.xy_px0[order]})
        found = np.concatenate([b.pixels for b in read_batches(slide, shuffled, batch=9, threads=3)])
        np.testing.assert_array_equal(found, one_by_one(slide, grid)[order])


# --- shrunk while decoding -----------------------------------------------------------------------------------


def test_tiles_are_shrunk_only_as_far_as_they_stay_fine_enough(tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "a.tif"), FAST) as slide:

        def chosen(side_px0: float, scaling: str) -> tuple[int, int]:
            tiles = patch_tiles(slide, grid_on(slide, side_px0, 64), scaling)
            assert tiles is not None
            return tiles.level, 64 // tiles.tile[0]

        assert [chosen(s, "dct") for s in (64.0, 126.0, 127.0, 252.0, 256.0, 1024.0)] == [
            *((0, 1), (0, 1), (0, 2), (0, 2), (1, 1), (1, 4))
        ]
        assert chosen(128.0, "exact") == (0, 1)


def test_shrunk_pixels_are_close_to_the_exact_ones(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", rgb=True, size=(640, 480))
    with open_slide(path, FAST) as slide:
        grid = grid_on(slide, 128.0, 64, origin=(0, 0))
        inside = (grid.xy_px0 + 128 <= slide.sizes[0]).all(axis=1)
        exact, shrunk = (
            np.concatenate([b.pixels for b in read_batches(slide, grid, batch=8, threads=2, scaling=s)])[inside]
            for s in ("exact", "dct")
        )
        error = np.mean((exact.astype(float) - shrunk) ** 2, axis=(1, 2, 3))
        assert 0 < error.max() < 255**2 / 10 ** (35 / 10)  # 35 dB
