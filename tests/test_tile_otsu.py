"""Tissue is found by its colour; ink, shadow, fat, specks and bare glass are not tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.demo import draw_slide
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.read import open_slide, read_overview
from wsi_pipeline.tile import detectors
from wsi_pipeline.tile.clean import dilate, drop_small, fill_small
from wsi_pipeline.tile.pen import ink
from wsi_pipeline.types import Bool, UInt8

MPP = (8.0, 8.0)
GLASS = (244, 243, 245)
# Means over 8 µm of stained tissue: H&E stroma, lymphocytes and epithelium, blood, DAB, pale and dense counterstain.
STAINS = {
    "stroma": (228, 170, 205),
    "red stroma": (225, 120, 150),
    "lymphocytes": (120, 85, 160),
    "dense nuclei": (80, 50, 120),
    "blood": (200, 85, 115),
    "DAB": (130, 85, 55),
    "counterstain": (170, 180, 215),
}
INKS = {"blue": (20, 60, 190), "green": (30, 140, 60), "red": (215, 35, 45), "black": (25, 25, 28)}


def glass(shape: tuple[int, int] = (120, 160), colour: tuple[int, int, int] = GLASS) -> UInt8:
    noise = np.random.default_rng(0).normal(0, 1.5, (*shape, 3))
    return np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)


def disk(centre: tuple[int, int], radius: int, shape: tuple[int, int] = (120, 160)) -> Bool:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    inside: Bool = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return inside


def painted(rgb: UInt8, where: Bool, colour: tuple[int, int, int]) -> UInt8:
    """The colour over the image as dyes do: the light that both transmit."""
    through = rgb[where].astype(float) * np.asarray(colour) / 245
    rgb[where] = np.clip(through + np.random.default_rng(1).normal(0, 3, through.shape), 0, 255)
    return rgb


def overlap(a: Bool, b: Bool) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("stain", STAINS)
def test_tissue_of_every_stain_is_found(stain: str) -> None:
    where = disk((60, 60), 35)
    assert overlap(detectors.build("otsu")(painted(glass(), where, STAINS[stain]), MPP), where) > 0.93


@pytest.mark.parametrize("stain", STAINS)
def test_no_stain_is_taken_for_ink(stain: str) -> None:
    assert not ink(painted(glass(), disk((60, 60), 35), STAINS[stain]), MPP).any()


@pytest.mark.parametrize("colour", INKS)
def test_pen_marks_are_not_tissue_even_on_top_of_it(colour: str) -> None:
    where = disk((60, 60), 35)
    stroke = np.zeros_like(where)
    stroke[85:100, 20:150] = True
    rgb = painted(painted(glass(), where, STAINS["stroma"]), stroke, INKS[colour])
    found = detectors.build("otsu")(rgb, MPP)
    assert not found[stroke].any()
    away = where & ~ndimage.binary_dilation(stroke, iterations=7)
    assert found[away].mean() > 0.97
    assert not found[~where].any() or overlap(found, where & ~stroke) > 0.8
    assert not found[:, 110:].any()


def test_a_pen_colour_that_is_not_listed_is_not_removed() -> None:
    rgb = painted(glass(), disk((60, 60), 35), INKS["red"])
    assert detectors.build("otsu", pen=["blue", "green", "black"])(rgb, MPP).mean() > 0.15
    assert detectors.build("otsu", pen="red")(rgb, MPP).mean() == 0


def test_a_small_spot_of_ink_does_not_remove_its_surroundings() -> None:
    where = disk((60, 60), 35)
    rgb = painted(painted(glass(), where, STAINS["stroma"]), disk((60, 60), 4), INKS["black"])
    assert overlap(detectors.build("otsu")(rgb, MPP), where) > 0.93


@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 240, 240), (245, 240, 228), (200, 200, 200), (60, 60, 60)])
@pytest.mark.parametrize("faint", [False, True])
def test_a_slide_without_tissue_is_empty(colour: tuple[int, int, int], faint: bool) -> None:
    """Otsu alone would divide the noise of the glass."""
    assert not detectors.build("otsu", faint=faint)(glass(colour=colour), MPP).any()


def test_a_uniform_image_has_no_tissue() -> None:
    assert not detectors.build("otsu")(np.full((9, 9, 3), 255, np.uint8), MPP).any()


def test_a_slide_full_of_tissue_is_found_entirely() -> None:
    assert detectors.build("otsu")(glass(colour=STAINS["stroma"]), MPP).all()


def test_grey_shadows_at_the_edge_are_not_tissue() -> None:
    rgb = painted(glass(), disk((60, 80), 30), STAINS["stroma"])
    rgb[:, :12] = np.linspace(60, 230, 12)[None, :, None] + np.random.default_rng(2).normal(0, 2, (120, 12, 3))
    found = detectors.build("otsu")(rgb, MPP)
    assert not found[:, :20].any()
    assert overlap(found, disk((60, 80), 30)) > 0.93


def test_fat_is_not_tissue_although_its_strands_are_stained() -> None:
    where = np.zeros((120, 160), bool)
    where[::9, :70] = where[:108, :70:9] = True  # strands of 8 µm around cells of 64 µm
    where |= (body := disk((60, 115), 35))
    found = detectors.build("otsu")(painted(glass(), where, STAINS["stroma"]), MPP)
    assert overlap(found, body) > 0.9


@pytest.mark.parametrize("colour", [(232, 233, 239), (222, 225, 236), (238, 232, 226)])
def test_faint_tissue_is_found_with_the_option(colour: tuple[int, int, int]) -> None:
    where = disk((60, 60), 35)
    rgb = painted(glass(), where, colour)
    assert not detectors.build("otsu")(rgb, MPP).any()
    assert overlap(detectors.build("otsu", faint=True)(rgb, MPP), where) > 0.9


def test_faint_tissue_is_found_beside_strongly_stained_tissue() -> None:
    pale, strong = disk((60, 50), 30), disk((60, 120), 25)
    rgb = painted(painted(glass(), pale, (228, 230, 238)), strong, STAINS["DAB"])
    assert overlap(detectors.build("otsu", faint=True)(rgb, MPP), pale | strong) > 0.9


def test_specks_and_holes_are_measured_in_um2() -> None:
    where = disk((60, 60), 35) & ~disk((60, 60), 6)  # a hole of 113 px: 7,232 µm²
    speck = disk((20, 140), 6)
    rgb = painted(glass(), where | speck, STAINS["stroma"])

    def found(**options: float) -> Bool:
        return detectors.build("otsu", smooth_um=0, min_width_um=0, **options)(rgb, MPP)

    assert not found(min_object_um2=8_000)[speck].any()
    assert found(min_object_um2=6_000)[speck].all()
    assert found(min_hole_um2=8_000)[60, 60]
    assert not found(min_hole_um2=6_000)[60, 60]


def test_the_result_does_not_depend_on_the_raster() -> None:
    """The same slide at 4 and at 8 µm per pixel."""
    where = disk((60, 60), 35)
    rgb = painted(glass(), where, STAINS["stroma"])
    fine = np.kron(rgb, np.ones((2, 2, 1), np.uint8))
    coarse, finer = detectors.build("otsu")(rgb, MPP), detectors.build("otsu")(fine, (4.0, 4.0))
    assert overlap(finer, np.kron(coarse, np.ones((2, 2), bool))) > 0.96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pen": ["purple"]}, "purple"),
        ({"smooth_um": -1}, "smooth_um"),
        ({"min_object_um2": "big"}, "min_object_um2"),
        ({"treshold": 3}, "it takes: faint"),
    ],
)
def test_invalid_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detectors.build("otsu", **options)(glass(), MPP)


# --- cleaning ------------------------------------------------------------------------------------------------


def test_small_pieces_and_holes_are_removed_by_area() -> None:
    mask = np.zeros((7, 9), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[0, 8] = True
    assert drop_small(mask, 2).sum() == 24
    assert drop_small(mask, 25).sum() == 0
    assert fill_small(mask, 2).sum() == 26
    assert fill_small(mask, 1).sum() == 25


def test_background_at_the_border_is_not_a_hole() -> None:
    mask = np.ones((5, 5), bool)
    mask[0, 2] = False
    np.testing.assert_array_equal(fill_small(mask, 100), mask)


def test_the_dilation_is_by_an_ellipse() -> None:
    mask = np.zeros((7, 9), bool)
    mask[3, 4] = True
    grown = dilate(mask, (3.0, 1.0))
    assert grown.sum(axis=0).tolist() == [0, 1, 1, 1, 3, 1, 1, 1, 0]
    np.testing.assert_array_equal(dilate(mask, (0.0, 0.0)), mask)


# --- whole slides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pen", ["blue", "green", "red", "black", None])
def test_on_a_drawn_slide_pen_marks_change_little(tmp_path: Path, pen: str | None) -> None:
    with_pen, without = tmp_path / "with.tif", tmp_path / "without.tif"
    draw_slide(without, seed=4, side_px=1500)
    draw_slide(with_pen, seed=4, side_px=1500, pen=pen)
    masks, pictures = [], []
    for path in (without, with_pen):
        with open_slide(path, ReadConfig()) as slide:
            pictures.append(read_overview(slide, mpp=8.0).rgb)
        masks.append(detectors.build("otsu")(pictures[-1], MPP))
    clean, marked = masks
    assert 0.2 < clean.mean() < 0.8
    stroke = np.abs(pictures[0].astype(int) - pictures[1]).max(axis=2) > 40
    assert stroke.any() == (pen is not None)
    assert marked[stroke].sum() <= 0.02 * stroke.sum()
    away = ~ndimage.binary_dilation(stroke, iterations=8)
    assert (clean != marked)[away].mean() < 0.02


def test_the_tissue_of_the_real_slide_is_found(shared_data: Path) -> None:
    """Checked by eye: the biopsy and its strand, neither the glass nor the loose green-inked shreds to its right."""
    with open_slide(shared_data / "slides" / "cmu-1-small-region.svs", ReadConfig()) as slide:
        overview = read_overview(slide, mpp=8.0)
    found = detectors.build("otsu")(overview.rgb, MPP)
    assert 0.36 < found.mean() < 0.40
    assert found[150:180, 45:90].all()  # dermis, below
    assert not found[:, :10].any()  # glass, left
    assert not found[:20, :40].any()
    assert not found[30:60, 115:].any()  # debris on the glass, right
