"""Slides open or fail with a reason; a bad region affects only itself; pixels outside the slide are white."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tifffile import TiffFile, TiffWriter

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.errors import RegionError, SlideError, UnknownNameError
from wsi_pipeline.read import open_slide, readers
from wsi_pipeline.read.openslide_reader import _bounds
from wsi_pipeline.types import UInt8

MPP = ReadConfig(mpp=0.5)
OPENSLIDE = ReadConfig(reader="openslide", mpp=0.5)


def noise(height: int, width: int, seed: int = 0) -> UInt8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_tiff(path: Path, pixels: UInt8, compression: str = "deflate") -> Path:
    """A tiled TIFF of 64-px tiles, which OpenSlide reads as generic-tiff."""
    with TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(64, 64), photometric="rgb", compression=compression, metadata=None)
    return path


def damage_tile(path: Path, tile: int) -> Path:
    """Overwrite the bytes of one tile."""
    with TiffFile(path) as tiff:
        page = tiff.pages.first
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\x00" * count
    path.write_bytes(data)
    return path


def refusal(path: Path, config: ReadConfig = MPP) -> str:
    with pytest.raises(SlideError) as caught:
        open_slide(path, config)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


# --- opening -------------------------------------------------------------------------------------------------


def test_the_readers_are_known_by_name() -> None:
    assert readers.names() == ["image", "jpeg_tiff", "openslide"]
    with pytest.raises(UnknownNameError, match="openslide"):
        open_slide(Path(__file__), ReadConfig(reader="opensldie"))


def test_a_tiled_tiff_is_read_by_openslide(tmp_path: Path) -> None:
    pixels = noise(150, 200)
    with open_slide(write_tiff(tmp_path / "a.tif", pixels), MPP) as slide:
        assert (slide.reader, slide.vendor) == ("openslide", "generic-tiff")
        assert (slide.sizes, slide.downsamples) == (((200, 150),), (1.0,))
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.5), "read.mpp")
        assert slide.bounds_px0 == (0, 0, 200, 150)
        np.testing.assert_array_equal(slide.read((0, 0), 0, (200, 150)), pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_a_plain_image_has_one_level(tmp_path: Path, name: str) -> None:
    pixels = noise(40, 60)
    Image.fromarray(pixels).save(tmp_path / name)
    with open_slide(tmp_path / name, ReadConfig(), mpp=0.25) as slide:
        assert (slide.reader, slide.sizes, slide.mpp_source) == ("image", ((60, 40),), "manifest")
        got = slide.read((10, 5), 0, (20, 30))
        assert got.shape == (30, 20, 3)
        if name != "a.jpg":
            np.testing.assert_array_equal(got, pixels[5:35, 10:30])


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    with open_slide(path, MPP) as slide:
        assert slide.read((0, 0), 0, (8, 8)).tolist() == np.full((8, 8, 3), 255).tolist()


def test_transparent_pixels_are_white_and_half_transparent_ones_pale(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], np.uint8), "RGBA").save(path)
    with open_slide(path, MPP) as slide:
        assert slide.read((0, 0), 0, (3, 1)).tolist() == [[[255, 255, 255], [200, 0, 0], [244, 204, 204]]]


def test_a_plain_tiffs_resolution_tags_are_used_if_they_are_plausible(tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 8))
    path = tmp_path / "a.tif"
    for unit, per_unit, mpp in ((2, 50_800.0, 0.5), (3, 40_000.0, 0.25)):
        image.save(path, resolution_unit=unit, x_resolution=per_unit, y_resolution=per_unit / 2)
        with open_slide(path, ReadConfig()) as slide:
            assert slide.mpp == pytest.approx((mpp, 2 * mpp))
    image.save(path, resolution_unit=1, x_resolution=40_000.0, y_resolution=40_000.0)
    assert "has no resolution" in refusal(path, ReadConfig())
    image.save(path, dpi=(300, 300))
    assert "300 dpi" in refusal(path, ReadConfig())


def test_openslides_bounds_are_clipped_to_the_slide() -> None:
    names = ("x", "y", "width", "height")
    properties = {f"openslide.bounds-{n}": v for n, v in zip(names, ("100", "200", "5000", "300"), strict=True)}
    assert _bounds(properties, (1000, 2000)) == (100, 200, 900, 300)
    assert _bounds({}, (1000, 2000)) == (0, 0, 1000, 2000)


def test_the_real_slide_opens(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "cmu-1-small-region.svs", ReadConfig()) as slide:
        assert (slide.vendor, slide.sizes, slide.mpp) == ("aperio", ((2220, 2967),), (0.499, 0.499))
        assert slide.mpp_source == "openslide.mpp-x"
        assert slide.read((10, 10), 0, (50, 40)).min() > 200  # glass


# --- refusals ------------------------------------------------------------------------------------------------


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.svs")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "a.svs")


@pytest.mark.parametrize(
    "text", ["slide_id,path\n", "<html>naïve", "version https://git-lfs.github.com/spec/v1\n" * 99]
)
def test_a_text_file_is_recognised(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.svs"
    path.write_text(text, encoding="utf-8")
    message = refusal(path)
    assert f"text file (it begins {text[:13]!r}"[:-1] in message
    assert "openslide: " in message
    assert "image: " in message


@pytest.mark.parametrize("kept", [100, 3000, -10])
def test_a_truncated_tiff_is_recognised(tmp_path: Path, kept: int) -> None:
    with TiffWriter(tmp_path / "a.tif") as tiff:
        for side in (256, 128):
            tiff.write(noise(side, side), tile=(64, 64), photometric="rgb", compression="deflate", metadata=None)
    path = tmp_path / "truncated.tif"
    complete = (tmp_path / "a.tif").read_bytes()
    with TiffFile(tmp_path / "a.tif") as tiff:
        last = tiff.pages[1].offset
    path.write_bytes(complete[: kept if kept > 0 else last + 20])
    assert "it is truncated" in refusal(path)


def test_a_truncated_image_is_recognised(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert "damaged or truncated" in refusal(tmp_path / "a.png")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(bytes(range(256)) * 40)
    assert "no reader supports this format" in refusal(tmp_path / "a.svs")


def test_sixteen_bits_are_not_reduced_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    assert "not 8-bit" in refusal(tmp_path / "a.png")


def test_a_stack_of_images_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(noise(16, 16))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    assert "3 pages" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("side", [9_600, 14_000])
def test_an_image_too_large_for_memory_is_refused(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert "vips tiffsave" in refusal(tmp_path / "a.png")


# --- regions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("xy", [(-30, 10), (10, -30), (90, 90), (-20, -20), (500, 0), (0, -500), (40, 40)])
def test_pixels_outside_the_slide_are_white(tmp_path: Path, name: str, xy: tuple[int, int]) -> None:
    pixels = noise(100, 120)
    path = tmp_path / name
    write_tiff(path, pixels) if name == "a.tif" else Image.fromarray(pixels).save(path)
    expected = np.full((50, 60, 3), 255, np.uint8)
    for row in range(50):
        for column in range(60):
            x, y = xy[0] + column, xy[1] + row
            if 0 <= x < 120 and 0 <= y < 100:
                expected[row, column] = pixels[y, x]
    with open_slide(path, MPP) as slide:
        np.testing.assert_array_equal(slide.read(xy, 0, (60, 50)), expected)


def test_pixels_outside_the_slide_are_white_on_a_coarse_level(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with TiffWriter(path) as tiff:
        for i in range(2):
            black = np.zeros((256 >> 2 * i, 256 >> 2 * i, 3), np.uint8)
            tiff.write(black, tile=(64, 64), photometric="rgb", compression="deflate", subfiletype=i, metadata=None)
    with open_slide(path, MPP) as slide:
        got = slide.read((-40, 160), 1, (30, 40))  # columns -10 to 19, rows 40 to 79 of 64
    assert got[:24, 10:].max() == 0
    assert got[24:].min() == got[:, :10].min() == 255


def test_an_invalid_region_is_refused(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", noise(64, 64)), MPP) as slide:
        for level, size in ((1, (8, 8)), (-1, (8, 8)), (0, (0, 8))):
            with pytest.raises(ValueError, match="invalid region"):
                slide.read((0, 0), level, size)
    with pytest.raises(ValueError, match="is closed"):
        slide.read((0, 0), 0, (8, 8))
    slide.close()


def test_only_the_regions_on_a_damaged_tile_fail(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.full((192, 192, 3), 90, np.uint8), "jpeg")
    with open_slide(damage_tile(path, 4), OPENSLIDE) as slide:  # columns and rows 64 to 127
        for _ in range(2):
            with pytest.raises(RegionError, match=r"a\.tif: level 0, 10 x 12 px at \(70, 80\) cannot be decoded"):
                slide.read((70, 80), 0, (10, 12))
            for xy in ((0, 0), (128, 64), (64, 128)):
                assert abs(slide.read(xy, 0, (64, 64)).astype(int) - 90).max() <= 2


def test_a_damaged_tile_affects_only_the_thread_that_reads_it(tmp_path: Path) -> None:
    path = damage_tile(write_tiff(tmp_path / "a.tif", np.full((192, 192, 3), 90, np.uint8), "jpeg"), 4)
    wrong: list[object] = []

    def work(xy: tuple[int, int], bad: bool) -> None:
        for _ in range(40):
            try:
                pixels = slide.read(xy, 0, (64, 64))
            except RegionError as error:
                if not bad:
                    wrong.append(error)
            else:
                if bad or abs(pixels.astype(int) - 90).max() > 2:
                    wrong.append(pixels)

    with open_slide(path, OPENSLIDE) as slide:
        jobs = [((0, 0), False), ((64, 64), True), ((128, 128), False), ((64, 64), True)]
        threads = [threading.Thread(target=work, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_slide_that_disappears_is_distinguished_from_a_bad_region(tmp_path: Path) -> None:
    path = damage_tile(write_tiff(tmp_path / "a.tif", np.full((192, 192, 3), 90, np.uint8), "jpeg"), 4)
    with open_slide(path, OPENSLIDE) as slide:
        path.rename(tmp_path / "moved.tif")
        with pytest.raises(SlideError, match="can no longer be opened") as caught:
            slide.read((70, 80), 0, (10, 12))
    assert not isinstance(caught.value, RegionError)
