"""The demo's slides: their files, their content, and that mean colour does not reveal the label."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from defusedxml import ElementTree
from scipy.ndimage import binary_closing, binary_opening
from shapely.geometry import MultiPolygon, Point, Polygon, box
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi_pipeline.demo import NORMAL, PENS, TUMOUR, draw_cohort, draw_slide
from wsi_pipeline.demo.asap_xml import asap_xml
from wsi_pipeline.demo.cohort_plan import plan_cohort, plan_slide
from wsi_pipeline.demo.drawing import draw
from wsi_pipeline.demo.layout import Site, lay_out
from wsi_pipeline.demo.shapes import closed_curve, crowded_points, polygon_area, polygon_mask
from wsi_pipeline.demo.stain import Stain, coloured
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.project import read_manifest
from wsi_pipeline.types import Bool, Float64, UInt8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a cohort of small slides; lesions and infiltrates cover the usual fraction of the slide."""
    return draw_cohort(tmp_path_factory.mktemp("demo"), slides=24, patients=20, side_px=1000, seed=0, workers=1)


@pytest.fixture(scope="module")
def lesion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[Site, ...]]:
    """One tumour slide with a hole in its lesion: its path, its annotation, its sites."""
    folder = tmp_path_factory.mktemp("lesion")
    slide, annotation = folder / "a.tif", folder / "a.xml"
    return slide, annotation, draw_slide(slide, side_px=2400, seed=5, tumour=True, hole=True, annotation=annotation)


def pixels(path: Path, level: int = 0) -> UInt8:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


def polygons(annotation: Path) -> dict[str, list[Float64]]:
    """Outlines by group, read directly from the XML."""
    groups: dict[str, list[Float64]] = {}
    for element in ElementTree.fromstring(annotation.read_text()).iter("Annotation"):
        xy = [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in element.iter("Coordinate")]
        groups.setdefault(element.attrib["PartOfGroup"], []).append(np.array(xy))
    return groups


def tissue(rgb: UInt8) -> Bool:
    """Coloured pixels of a level that is four times smaller, gaps up to 30 µm closed."""
    return np.asarray(binary_closing(np.ptp(rgb.astype(int), axis=2) > 25, iterations=8))


def large_nuclei(rgb: UInt8) -> Bool:
    """Dark areas that a disc of 8 µm fits into: lymphocytes are smaller."""
    y, x = np.mgrid[-8:9, -8:9]
    disc = np.asarray(x * x + y * y <= 64)
    return np.asarray(binary_opening(rgb[..., 0] < 150, structure=disc))


# --- files -----------------------------------------------------------------------------------------------------


def test_openslide_opens_a_slide_with_four_levels_at_half_a_micrometre(tmp_path: Path) -> None:
    draw_slide(tmp_path / "a.tif", side_px=1200)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1200, 1200), (600, 600), (300, 300), (150, 150))
        assert list(slide.level_downsamples) == [1, 2, 4, 8]
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert float(slide.properties["openslide.mpp-y"]) == 0.5
        assert slide.properties["openslide.level[0].tile-width"] == "256"


def test_an_odd_side_is_drawn_to_its_last_pixel(tmp_path: Path) -> None:
    draw_slide(tmp_path / "a.tif", side_px=777)
    assert pixels(tmp_path / "a.tif").shape == (777, 777, 3)
    assert pixels(tmp_path / "a.tif")[-1].min() > 150


def test_a_slide_can_be_drawn_without_a_stated_resolution(tmp_path: Path) -> None:
    draw_slide(tmp_path / "a.tif", side_px=500, with_mpp=False)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert "openslide.mpp-x" not in slide.properties


def test_every_level_shows_the_same_image(tmp_path: Path) -> None:
    draw_slide(tmp_path / "a.tif", side_px=1000)
    full = pixels(tmp_path / "a.tif").mean(axis=2)
    for level, factor in ((1, 2), (2, 4), (3, 8)):
        averaged = full.reshape(1000 // factor, factor, 1000 // factor, factor).mean(axis=(1, 3))
        stored = pixels(tmp_path / "a.tif", level).mean(axis=2)
        assert np.corrcoef(averaged.ravel(), stored.ravel())[0, 1] > 0.98


def test_the_same_seed_gives_the_same_bytes_and_another_seed_different_ones(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_slide(tmp_path / name, side_px=500, seed=seed, tumour=True, annotation=tmp_path / f"{name}.xml")
    slides = [(tmp_path / name).read_bytes() for name in "abc"]
    outlines = [(tmp_path / f"{name}.xml").read_bytes() for name in "abc"]
    assert slides[0] == slides[1] != slides[2]
    assert outlines[0] == outlines[1] != outlines[2]


def test_the_manifest_lists_24_slides_of_20_patients_half_of_them_with_tumour(cohort: Path) -> None:
    rows = read_manifest(cohort)
    assert len(rows) == 24
    assert Counter(row.label for row in rows) == {TUMOUR: 12, NORMAL: 12}
    assert len({row.patient_id for row in rows}) == len({(row.patient_id, row.label) for row in rows}) == 20
    assert all(row.path.is_file() and row.path.parent == cohort.parent / "slides" for row in rows)
    assert all((row.annotation is not None and row.annotation.is_file()) == (row.label == TUMOUR) for row in rows)
    assert "mpp" not in cohort.read_text().splitlines()[0]


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    for workers in (1, 2):
        draw_cohort(tmp_path / str(workers), slides=2, patients=2, side_px=500, workers=workers)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "12"
    )
    assert one == two
    assert len(one) == 6  # two slides with their provenance, one annotation, the manifest


def test_only_missing_or_outdated_slides_are_drawn(tmp_path: Path) -> None:
    def drawn(seed: int = 0) -> dict[str, int]:
        reported: list[tuple[int, int]] = []
        draw_cohort(
            tmp_path, slides=2, patients=2, side_px=500, seed=seed, workers=1, progress=lambda *n: reported.append(n)
        )
        assert reported[-1] == (2, 2)
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "slides").glob("*.tif")}

    first = drawn()
    assert drawn() == first
    (tmp_path / "slides" / "slide_01.tif").unlink()
    second = drawn()
    assert second["slide_02.tif"] == first["slide_02.tif"]
    assert set(second) == {"slide_01.tif", "slide_02.tif"}
    assert all(time != second[name] for name, time in drawn(seed=1).items())


def test_the_annotation_is_in_camelyon16s_format() -> None:
    triangle = np.array([[1.0, 2.0], [30.0, 2.0], [1.0, 20.5]])
    assert asap_xml([triangle], [triangle]).splitlines()[:8] == [
        '<?xml version="1.0"?>',
        "<ASAP_Annotations>",
        "\t<Annotations>",
        '\t\t<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="_0" Color="#F4FA58">',
        "\t\t\t<Coordinates>",
        '\t\t\t\t<Coordinate Order="0" X="1.00" Y="2.00" />',
        '\t\t\t\t<Coordinate Order="1" X="30.00" Y="2.00" />',
        '\t\t\t\t<Coordinate Order="2" X="1.00" Y="20.50" />',
    ]
    root = ElementTree.fromstring(asap_xml([triangle, triangle], [triangle]))
    assert [a.get("PartOfGroup") for a in root.iter("Annotation")] == ["_0", "_1", "_2"]
    assert [g.get("Name") for g in root.iter("Group")] == ["_0", "_1", "_2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"slides": 5, "patients": 4}, "even numbers"),
        ({"slides": 4, "patients": 6}, "at least as many slides"),
        ({"slides": 4, "patients": 4, "side_px": 100}, "500 to 20000 px"),
    ],
)
def test_an_impossible_cohort_is_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_cohort(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_an_unknown_pen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pink pen; choose one of blue"):
        draw_slide(tmp_path / "a.tif", pen="pink")


# --- content ---------------------------------------------------------------------------------------------------


def test_tissue_covers_about_half_of_every_slide(cohort: Path) -> None:
    fractions = [tissue(pixels(row.path, level=2)).mean() for row in read_manifest(cohort)]
    assert min(fractions) > 0.35
    assert max(fractions) < 0.75


def test_annotations_lie_inside_the_tissue(cohort: Path) -> None:
    for row in read_manifest(cohort):
        if row.annotation is not None:
            mask = tissue(pixels(row.path, level=2))
            for outlines in polygons(row.annotation).values():
                for x, y in np.concatenate(outlines).astype(int) // 4:
                    assert mask[y, x], row.slide_id


def test_large_dark_nuclei_fill_the_annotation_and_are_nowhere_else(
    lesion: tuple[Path, Path, tuple[Site, ...]],
) -> None:
    slide, annotation, _ = lesion
    nuclei = large_nuclei(pixels(slide))
    groups = polygons(annotation)
    inside = np.zeros(nuclei.shape, bool)
    for outline in groups["_0"] + groups.get("_1", []):
        inside |= polygon_mask(outline, nuclei.shape)
    inside &= ~polygon_mask(groups["_2"][0], nuclei.shape)
    assert nuclei[inside].mean() > 0.2
    assert nuclei[~inside].sum() < 0.05 * nuclei.sum()
    patches = np.asarray(inside.reshape(40, 60, 40, 60).all(axis=(1, 3)))  # 30 µm wide
    found = np.asarray(nuclei.reshape(40, 60, 40, 60).any(axis=(1, 3)))
    assert patches.sum() > 50
    assert found[patches].mean() > 0.95


def test_the_hole_lies_in_the_lesion_and_the_sites_do_not_intersect(
    lesion: tuple[Path, Path, tuple[Site, ...]],
) -> None:
    _, annotation, sites = lesion
    groups = polygons(annotation)
    assert Polygon(groups["_0"][0]).contains(Polygon(groups["_2"][0]))
    shapes = [Polygon(site.outline_px0) for site in sites]
    assert all(shape.is_valid for shape in shapes)
    assert all(not a.intersects(b) for i, a in enumerate(shapes) for b in shapes[:i])


def test_infiltrates_are_as_dark_as_tumour(lesion: tuple[Path, Path, tuple[Site, ...]]) -> None:
    slide, _, sites = lesion
    grey = pixels(slide).mean(axis=2)
    shape = (2400, 2400)
    assert sites[0].hole_px0 is not None
    stroma = polygon_mask(sites[0].hole_px0, shape)
    tumour = polygon_mask(sites[0].outline_px0, shape) & ~stroma
    infiltrates = [polygon_mask(site.outline_px0, shape) for site in sites if not site.tumour]
    infiltrate = np.mean([grey[mask].mean() for mask in infiltrates])
    assert abs(grey[tumour].mean() - infiltrate) < 0.25 * (grey[stroma].mean() - infiltrate)


@pytest.mark.parametrize("pen", PENS)
def test_a_pen_mark_has_its_colour_and_changes_nothing_else(pen: str) -> None:
    plans = [plan_slide("a", "a", tumour=True, side_px=700, seed=(4,), burden=2, pen=p) for p in (None, pen)]
    plain, marked = (draw(plan) for plan in plans)
    changed = (plain.rgb != marked.rgb).any(axis=2)
    assert 0.01 < changed.mean() < 0.3
    for site in marked.sites:
        assert not (changed & polygon_mask(site.outline_px0, changed.shape)).any()
    on_glass = marked.rgb[changed & (plain.rgb.min(axis=2) > 215)].astype(int)  # (n, 3)
    r, g, b = np.median(on_glass, axis=0)
    expected = {"blue": b - max(r, g) > 60, "green": g - max(r, b) > 40, "red": r - max(g, b) > 60, "black": r < 60}
    assert expected[pen]
    assert pen != "black" or max(r, g, b) - min(r, g, b) < 20


def test_every_full_size_tumour_slide_has_eight_patches_entirely_in_tumour() -> None:
    plans = [plan for plan in plan_cohort(24, 20, 6000, seed=0) if plan.label == TUMOUR]
    smallest = sorted(plans, key=lambda plan: max(plan.lesions_um))[:4]
    for plan in smallest:
        assert max(plan.lesions_um) <= 400  # micrometastases only
        lesions = MultiPolygon([Polygon(s.outline_px0, []) for s in lay_out(plan).sites if s.tumour])
        whole = [
            (x, y)
            for x in range(0, 6000 - 223, 224)
            for y in range(0, 6000 - 223, 224)
            if lesions.contains(box(x, y, x + 224, y + 224))
        ]
        assert len(whole) >= 8, plan.slide_id


def test_the_cohort_has_lesions_of_every_size_and_its_plan_does_not_reveal_the_label() -> None:
    plans = plan_cohort(24, 20, 6000, seed=0)
    tumour, normal = ([p for p in plans if p.label == label] for label in (TUMOUR, NORMAL))
    assert all(1 <= len(p.lesions_um) <= 4 for p in tumour)
    assert all(not p.lesions_um and not p.hole for p in normal)
    largest = [max(p.lesions_um) for p in tumour]
    assert min(largest) <= 400
    assert max(largest) >= 1000
    assert sum(p.hole for p in tumour) == 2
    pens = [sorted(p.pen or "" for p in ps) for ps in (tumour, normal)]
    assert pens[0] == pens[1] == sorted([*PENS, *[""] * 8])
    areas = [np.mean([sum(d**2 for d in p.lesions_um + p.infiltrates_um) for p in ps]) for ps in (tumour, normal)]
    assert 0.7 < areas[0] / areas[1] < 1.4


def test_mean_colour_does_not_separate_the_labels(cohort: Path) -> None:
    """Mean pooling of the patches' mean RGB, logistic regression, each patient left out in turn."""
    rows = read_manifest(cohort)
    bags = []
    for row in rows:
        patches = pixels(row.path)[:960, :960].reshape(12, 80, 12, 80, 3).mean(axis=(1, 3)).reshape(-1, 3)
        bags.append(patches[np.ptp(patches, axis=1) > 25].mean(axis=0))
    labels = np.array([row.label == TUMOUR for row in rows])
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression()),
        np.array(bags),
        labels,
        groups=[row.patient_id for row in rows],
        cv=LeaveOneGroupOut(),
        method="predict_proba",
    )[:, 1]
    assert max(roc_auc_score(labels, scores), 1 - roc_auc_score(labels, scores)) < 0.8
    for channel in np.array(bags).T:
        assert 0.2 < roc_auc_score(labels, channel) < 0.8


# --- parts -----------------------------------------------------------------------------------------------------


def test_colours_follow_the_beer_lambert_law() -> None:
    stain = Stain((0.6, 0.7, 0.3), (0.1, 0.9, 0.4), (1.0, 0.96, 0.9))
    haematoxylin, eosin = np.array([[0, 100, 40]], np.uint8), np.array([[0, 0, 50]], np.uint8)
    rgb = coloured(haematoxylin, eosin, stain.table(), np.full((1, 3), 255, np.uint8))
    for i, (h, e) in enumerate([(0, 0), (1.0, 0), (0.4, 0.5)]):
        for c in range(3):
            od = h * stain.haematoxylin_od[c] + e * stain.eosin_od[c]
            assert abs(int(rgb[0, i, c]) - 254 * stain.light[c] / 10**od) < 2


def test_an_irregular_outline_has_the_requested_area() -> None:
    outline = closed_curve(50.0, 0.2, np.random.default_rng(3))
    assert polygon_area(outline) == pytest.approx(np.pi * 50**2)
    assert Polygon(outline).is_valid
    assert Polygon(outline).contains(Point(0, 0))
    assert not np.allclose(np.hypot(*outline.T), 50, rtol=0.02)


def test_dense_points_lie_on_their_mask_and_keep_their_distance() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    points = crowded_points(mask, 4.0, 10.0, np.random.default_rng(0), jitter=0.2)
    assert len(points) == pytest.approx(40 * 50 * 16 / (100 * np.sqrt(0.75)), rel=0.05)
    assert points[:, 0].min() >= 80
    assert points[:, 0].max() < 280
    assert points[:, 1].min() >= 40
    assert points[:, 1].max() < 200
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 99 * np.eye(len(points))
    assert distance.min() > 4.0
