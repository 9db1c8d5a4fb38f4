"""Which stated resolution is used, and the error without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_pipeline.config import ReadConfig
from wsi_pipeline.errors import SlideError
from wsi_pipeline.read.resolution import Claim, implausible, openslide_claims, resolve_mpp, tiff_claim

SLIDE = Path("slide_12.svs")
OF_FILE = (Claim((0.25, 0.26), "openslide.mpp-x"),)


def test_the_manifest_comes_first() -> None:
    assert resolve_mpp(SLIDE, 0.5, ReadConfig(mpp=0.4), OF_FILE) == ((0.5, 0.5), "manifest")


def test_then_the_config_as_one_number_or_a_pair() -> None:
    assert resolve_mpp(SLIDE, None, ReadConfig(mpp=0.4), OF_FILE) == ((0.4, 0.4), "read.mpp")
    assert resolve_mpp(SLIDE, None, ReadConfig(mpp=(0.4, 0.41)), OF_FILE) == ((0.4, 0.41), "read.mpp")


def test_then_the_file_with_x_and_y_kept_apart() -> None:
    assert resolve_mpp(SLIDE, None, ReadConfig(), OF_FILE) == ((0.25, 0.26), "openslide.mpp-x")


def test_without_any_the_error_states_how_to_give_it() -> None:
    with pytest.raises(SlideError) as caught:
        resolve_mpp(SLIDE, None, ReadConfig(), ())
    assert str(caught.value) == (
        "slide_12.svs has no resolution (openslide.mpp-x and TIFF resolution tags are absent); "
        "give it in the manifest's mpp column or --set read.mpp=0.25 (`wsi info --mpp 0.25`; "
        "in Python: open_slide(path, mpp=0.25))"
    )


def test_an_implausible_claim_is_named_in_the_error() -> None:
    with pytest.raises(SlideError, match=r"tag \(inch\) means 300 dpi, the resolution of a screen or printer"):
        resolve_mpp(SLIDE, None, ReadConfig(), [Claim((25400 / 300,) * 2, "TIFF resolution tag (inch)")])


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200, 2400, 4800])
def test_a_printers_resolution_is_implausible(dpi: int) -> None:
    assert implausible(Claim((25400 / dpi, 25400 / dpi), "tag")) is not None


@pytest.mark.parametrize("mpp", [0.0, -0.25, float("nan"), float("inf"), 0.01, 21.0, 1000.0])
def test_a_resolution_outside_a_microscopes_range_is_implausible(mpp: float) -> None:
    assert implausible(Claim((mpp, mpp), "tag")) is not None
    assert implausible(Claim((0.25, mpp), "tag")) is not None


@pytest.mark.parametrize("mpp", [0.05, 0.1131, 0.2431, 0.25, 0.499, 1.0, 8.0, 20.0])
def test_a_microscopes_resolution_is_plausible(mpp: float) -> None:
    assert implausible(Claim((mpp, mpp), "tag")) is None


def test_after_an_implausible_claim_the_next_is_used() -> None:
    claims = [Claim((352.8, 352.8), "openslide.mpp-x"), Claim((0.499, 0.499), "aperio.MPP")]
    assert resolve_mpp(SLIDE, None, ReadConfig(), claims) == ((0.499, 0.499), "aperio.MPP")


def test_openslides_properties_are_ordered_by_reliability() -> None:
    properties = {
        "openslide.mpp-x": "0.2431",
        "openslide.mpp-y": "0.2433",
        "aperio.MPP": "0.25",
        "aperio.AppMag": "40",
        "tiff.XResolution": "40000",
        "tiff.YResolution": "20000",
        "tiff.ResolutionUnit": "centimeter",
    }
    assert openslide_claims(properties) == (
        Claim((0.2431, 0.2433), "openslide.mpp-x"),
        Claim((0.25, 0.25), "aperio.MPP"),
        Claim((0.25, 0.5), "TIFF resolution tag (centimeter)"),
        Claim((0.25, 0.25), "aperio.AppMag 40, nominal 10/magnification"),
    )


def test_the_magnification_is_used_only_without_a_better_claim() -> None:
    found = resolve_mpp(SLIDE, None, ReadConfig(), openslide_claims({"aperio.AppMag": "20"}))
    assert found == ((0.5, 0.5), "aperio.AppMag 20, nominal 10/magnification")


@pytest.mark.parametrize("broken", [{"openslide.mpp-x": "0.25"}, {"aperio.MPP": "n/a"}, {"aperio.AppMag": "0"}])
def test_incomplete_or_unparsable_properties_are_ignored(broken: dict[str, str]) -> None:
    assert openslide_claims(broken) == ()


def test_a_tag_without_a_unit_is_ignored() -> None:
    assert tiff_claim(40000, 40000, "none") is None
    assert tiff_claim(40000, None, "centimeter") is None
    assert tiff_claim(50800, 25400, "inch") == Claim((0.5, 1.0), "TIFF resolution tag (inch)")
