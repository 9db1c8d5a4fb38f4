"""The report: one self-contained page with each slide once, in which everything from files is escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import MultiPolygon, Polygon

from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.config import Config
from wsi_pipeline.engine import Engine, Failure
from wsi_pipeline.errors import ArtifactError
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.project import Project
from wsi_pipeline.store import write_explanations, write_grid
from wsi_pipeline.types import Explanation, PatchGrid, SlideRow, TissueMask, Unit
from wsi_pipeline.view import report as report_module
from wsi_pipeline.view import stage as view_stage
from wsi_pipeline.view.numbers import PredictionTable, read_metrics, read_slide_predictions
from wsi_pipeline.view.panel import sign_meaning, svg_path, top_rows
from wsi_pipeline.view.pictures import crop, map_uri, palette

SIZE = (480, 320)
EVIL = '<script>alert("x")&'
NAN = float("nan")


# --- pictures ----------------------------------------------------------------------------------------------------


def opened(uri: str) -> Image.Image:
    kind, data = uri.removeprefix("data:").split(";base64,")
    assert kind in {"image/png", "image/jpeg"}
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_map_is_coloured_within_its_window_and_transparent_where_there_is_no_patch() -> None:
    values = np.array([[NAN, -9.0, 0.0, 5.0, 10.0, 99.0]], np.float32)
    rgba = np.asarray(opened(map_uri(values, (0.0, 10.0), False)).convert("RGBA"))[0]
    assert rgba[:, 3].tolist() == [0, 255, 255, 255, 255, 255]
    low, middle, high = (palette(False)[i].tolist() for i in (0, 127, 254))
    assert rgba[1:, :3].tolist() == [low, low, middle, high, high]


def test_a_constant_map_is_grey() -> None:
    values = np.array([[NAN, 1.0, 1.0]], np.float32)
    rgba = np.asarray(opened(map_uri(values, (0.0, 1.0), False, constant=True)).convert("RGBA"))[0]
    assert rgba[:, 3].tolist() == [0, 255, 255]
    assert np.ptp(rgba[1:, :3]) == 0


def test_signed_colours_are_lightest_at_zero_and_differ_in_hue_on_either_side() -> None:
    colors = palette(True).astype(int)
    assert colors.sum(axis=1).argmax() == 127
    assert colors[20, 2] > colors[20, 0]  # blue below
    assert colors[234, 0] > colors[234, 2]  # red above


def test_lightness_of_unsigned_colours_rises_evenly() -> None:
    linear = (palette(False) / 255.0) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(np.cbrt(luminance)) > 0).mean() > 0.97


def test_a_crop_comes_with_its_position() -> None:
    rgb = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    part, frame = crop(rgb, (8.0, 8.0), (17, 8, 30, 24))
    np.testing.assert_array_equal(part, rgb[1:4, 2:6])
    assert frame == (16.0, 8.0, 32.0, 24.0)


def test_outlines_include_holes() -> None:
    area = MultiPolygon([Polygon([(0, 0), (9, 0), (9, 9)], [[(6, 2), (8, 2), (8, 4)]])])
    assert svg_path(area) == "M0 0L9 0L9 9ZM6 2L8 2L8 4Z"
    assert svg_path(MultiPolygon()) == ""


def test_the_highest_scores_come_first_and_ties_in_grid_order() -> None:
    assert top_rows(np.array([0.1, 0.9, -3.0, 0.9, 0.5], np.float32), 3).tolist() == [1, 3, 4]


# --- numbers -----------------------------------------------------------------------------------------------------

HEADER = "slide_id,patient_id,label,split,model,task,members,weights,held_out,threshold,predicted,"


def predictions_of(path: Path, columns: str, *rows: str) -> PredictionTable:
    path.write_text("".join(f"{line}\n" for line in (HEADER + columns, *rows)))
    return read_slide_predictions(path)


def test_of_two_classes_the_probability_of_the_last_is_shown(tmp_path: Path) -> None:
    row = "s,p,a,,abmil,classification,5,w,true,0.25,b,0.600000,0.400000,0.6,0.4,a;b"
    found = predictions_of(tmp_path / "p.csv", "prob_a,prob_b,calibrated_a,calibrated_b,set", row)
    assert (found.models, found.task) == (("abmil",), "classification")
    one = found.get("s", "abmil")
    assert one is not None
    assert (one.predicted, one.correct, one.held_out) == ("b", False, True)
    (outcome,) = one.outcomes
    assert (outcome.name, outcome.text, outcome.percent, outcome.threshold_percent) == ("b", "0.400", 40.0, 25.0)
    assert (one.summary, one.sort_value) == ("b (b 0.400)", "0.400")
    assert found.note.startswith("Probability of b,")
    assert found.get("t", "abmil") is None


def test_of_more_classes_the_probability_of_the_most_probable_is_shown(tmp_path: Path) -> None:
    columns = "prob_a,prob_b,prob_c,calibrated_a,calibrated_b,calibrated_c,set"
    row = "s,p,,,abmil,classification,5,w,false,,b,0.2,0.5,0.3,0.2,0.5,0.3,b"
    one = predictions_of(tmp_path / "p.csv", columns, row).get("s", "abmil")
    assert one is not None
    assert (one.correct, one.held_out, one.summary) == (None, False, "b (b 0.500)")
    assert one.outcomes[0].threshold_percent is None


def test_an_abstention_is_neither_correct_nor_incorrect_and_lists_the_prediction_set(tmp_path: Path) -> None:
    columns = "prob_a,prob_b,calibrated_a,calibrated_b,set"
    rows = [
        f"{s},p,a,,abmil,classification,5,w,true,0.5,abstain,0.5,0.5,0.5,0.5,{names}"
        for s, names in (("s", "a;b"), ("t", ""))
    ]
    found = predictions_of(tmp_path / "p.csv", columns, *rows)
    both, none = found.get("s", "abmil"), found.get("t", "abmil")
    assert both is not None
    assert none is not None
    assert (both.predicted, both.correct) == ("abstain (a, b)", None)
    assert none.predicted == "abstain (no class conforms)"


def test_multilabel_shows_the_probability_of_each_label(tmp_path: Path) -> None:
    rows = ["s,p,b;a,,m,multilabel,5,w,true,,a;b,0.7,0.9,0.7,0.9", "t,p,-,,m,multilabel,5,w,true,,a,0.7,0.1,0.7,0.1"]
    found = predictions_of(tmp_path / "p.csv", "prob_a,prob_b,calibrated_a,calibrated_b", *rows)
    shown = [one for s in "st" if (one := found.get(s, "m"))]
    assert [(one.correct, one.summary, one.sort_value) for one in shown] == [
        (True, "a;b (a 0.700, b 0.900)", "0.900"),
        (False, "a (a 0.700, b 0.100)", "0.700"),
    ]
    assert [[outcome.percent for outcome in one.outcomes] for one in shown] == [[70.0, 90.0], [70.0, 10.0]]
    assert found.note.startswith("Probability of each label,")


@pytest.mark.parametrize(
    ("task", "columns", "row", "title", "summary"),
    [
        ("regression", "value,epistemic", "s,p,12.5,,m,regression,5,w,true,,,13.25,0.1", "Value", "value 13.2"),
        (
            "survival",
            "risk,epistemic,time,event",
            "s,p,,,m,survival,5,w,true,,,-0.75,0.1,3,1",
            "Risk",
            "risk -0.750",
        ),
    ],
)
def test_regression_and_survival_show_their_own_number(
    tmp_path: Path, task: str, columns: str, row: str, title: str, summary: str
) -> None:
    found = predictions_of(tmp_path / "p.csv", columns, row)
    one = found.get("s", "m")
    assert one is not None
    assert (found.task, found.outcome, one.summary) == (task, title, summary)
    assert (one.predicted, one.correct) == ("", None)
    assert [(outcome.percent, outcome.threshold_percent) for outcome in one.outcomes] == [(None, None)]
    assert "probability" not in found.note.lower()


def test_undefined_metrics_are_a_dash_and_patients_have_a_table_where_some_have_several_slides(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    none = {"value": None, "low": None, "high": None}
    some = {"value": 0.91234, "low": 0.8, "high": 1.0, "delong": [0.81, 0.99]}
    slides = {"n_slides": 7, "n_patients": 7, "metrics": {"auroc": some, "sensitivity_at_0.95": none}}
    report = {"models": {"abmil": slides}, "patients": {"abmil": slides}, "maps": [], "notes": ["few slides"]}
    path.write_text(json.dumps(report))
    found = read_metrics(path)
    (table,) = found.tables
    assert table.columns == ("abmil",)
    assert [line.name for line in table.lines] == ["AUROC", "Sensitivity at specificity 0.95", "Slides"]
    cells = [line.cells[0] for line in table.lines]
    assert [(c.value, c.interval) for c in cells] == [("0.912", "(0.800–1.000)"), ("–", ""), ("7", "")]
    assert cells[0].delong == "DeLong 0.810–0.990"
    assert found.notes == ("few slides",)
    path.write_text(json.dumps(report | {"models": {"abmil": slides | {"n_slides": 9}}}))
    assert [table.lines[-1].name for table in read_metrics(path).tables] == ["Slides", "Patients"]


def test_the_error_for_a_damaged_table_names_it(tmp_path: Path) -> None:
    for name, text in (("report.json", '{"models": 3}'), ("report.json", "{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ArtifactError, match=r"report\.json cannot be read .* run `wsi evaluate` again"):
            read_metrics(tmp_path / name)
    (tmp_path / "p.csv").write_text(
        HEADER + "prob_a,calibrated_a,set\ns,p,a,,abmil,classification,5,w,true,x,b,0.6,0.4,a\n"
    )
    with pytest.raises(ArtifactError, match=r"p\.csv cannot be read .* run `wsi predict` again"):
        read_slide_predictions(tmp_path / "p.csv")


# --- the stage ---------------------------------------------------------------------------------------------------


def slide_file(folder: Path) -> Path:
    path = folder / "slide.png"
    if not path.exists():
        noise = np.random.default_rng(0).integers(120, 255, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
    return path


def make_project(folder: Path, ids: tuple[str, ...] = ("a", "b", EVIL), **sections: Any) -> Project:
    """Slides with a grid each; all but "b" have explanations and a heatmap. "a" also has an annotation."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = folder / "a.geojson"
    drawn.write_text(json.dumps({"type": "Polygon", "coordinates": [[[10, 10], [200, 10], [200, 150], [10, 10]]]}))
    rows = tuple(
        SlideRow(i, slide_file(folder), f"patient {i}", "tumour", mpp=0.5, annotation=drawn if i == "a" else None)
        for i in ids
    )
    config = Config(slides=folder / "slides.csv", out=folder / "run", **sections)
    project = Project(config, rows, rows)
    columns, lines = np.meshgrid(np.arange(0, 448, 64), np.arange(0, 320, 64))
    xy = np.stack([columns, lines], axis=-1).reshape(-1, 2).astype(np.int64)
    mask = TissueMask(np.ones((10, 15), bool), (32.0, 32.0))
    for row in rows:
        side = (64.0, 64.0)
        grid = PatchGrid(row.slide_id, xy, 64, side, side, 0.5, (0.5, 0.5), SIZE, (0, 0, *SIZE))
        write_grid(project.folder.grid(row.slide_id), grid, mask, Provenance.of("g", "tile"))
        if row.slide_id != "b":
            explain(project, grid)
    (folder / "run" / "predict").mkdir(parents=True, exist_ok=True)
    predict(project, 0.9)
    paint(project)
    return project


def paint(project: Project) -> None:
    with Engine(project.config.engine, project.config.out) as engine:
        run_stage("heatmap", project, engine)


def explain(project: Project, grid: PatchGrid, key: str = "e", sign: int = 1, selected: str = "") -> None:
    scores = sign * np.linspace(-1, 1, len(grid)).astype(np.float32)
    for method, unit, signed in (("attention", "attention", False), ("contribution", "attribution", True)):
        is_selected = method == selected
        found = Explanation(grid, scores, method, "abmil", EVIL, unit, signed, selected=is_selected)  # type: ignore[arg-type]
        path = project.folder.explanation("abmil", method, grid.slide_id)
        write_explanations(path, [found], Provenance.of(key, "explain"))


def predict(project: Project, probability: float) -> None:
    import csv

    with project.folder.predictions.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        names = [f"{kind}_{name}" for kind in ("prob", "calibrated") for name in ("normal", "tumour")]
        table.writerow([*HEADER.rstrip(",").split(","), *names, "set"])
        for row in project.cohort:
            predicted = "tumour" if probability >= 0.5 else "normal"
            numbers = [f"{1 - probability:.6f}", f"{probability:.6f}"]
            case = [row.slide_id, row.patient_id, "tumour", "", "abmil", "classification", 5, "w", "true"]
            table.writerow([*case, "0.5", predicted, *numbers, *numbers, predicted])


def view(project: Project, earlier: tuple[Failure, ...] = ()) -> list[Failure]:
    with Engine(project.config.engine, project.config.out, earlier=earlier) as engine:
        run_stage("view", project, engine)
        return engine.failures


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): os.stat(p).st_mtime_ns for p in folder.rglob("*") if p.is_file()}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects attributes and the text of each kind of element."""

    VOID = frozenset({"meta", "img", "input", "image", "rect", "path", "use", "line", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, n, value in self.attributes if n == name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Page, str]:
    project = make_project(tmp_path_factory.mktemp("view"))
    failed = Failure("gone", "tile", "SlideError", "cannot open <img src=x onerror=alert(1)>; copy it again")
    assert view(project, (failed,)) == [failed]
    text = project.folder.report.read_text(encoding="utf-8")
    return project, Page(text), text


def test_each_slide_is_in_the_report_once(made: tuple[Project, Page, str]) -> None:
    project, page, _ = made
    assert page.tags["article"] == 3
    heads = [h.split(" label:")[0].strip() for h in page.text["h3"]]
    assert heads == [row.slide_id for row in project.cohort]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    anchors = {v[1:] for t, n, v in page.attributes if t in {"a", "use"} and n == "href" and v.startswith("#")}
    assert anchors <= set(ids)


def test_the_page_loads_nothing_from_outside(made: tuple[Project, Page, str]) -> None:
    _, page, text = made
    written = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!\"data:)", written)
    sources = [v for t, n, v in page.attributes if n == "src" or (n == "href" and t == "image")]
    assert len(sources) > 10
    assert all(s.startswith("data:image/") for s in sources)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)


def test_only_our_own_style_and_script_may_run(made: tuple[Project, Page, str]) -> None:
    _, page, _ = made
    policy = next(v for v in page.values("content") if "default-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = page.text[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [n for _, n, _ in page.attributes if n == "style" or n.startswith("on")]


def test_everything_from_files_is_escaped(made: tuple[Project, Page, str]) -> None:
    _, page, text = made
    assert page.tags["script"] == 1
    assert EVIL not in text
    assert "<img src=x" not in text
    assert "cannot open <img src=x onerror=alert(1)>; copy it again" in page.text["td"]
    assert f"abmil contribution: {EVIL}" in page.text["span"]


def test_the_map_is_placed_on_the_slide_in_level_0_pixels(made: tuple[Project, Page, str]) -> None:
    _, _, text = made
    assert text.count('viewBox="0 0 480 320"') == 5  # two per slide, one for the slide without a map
    maps = re.findall(r'<image class="map"[^>]*? x="0" y="0" width="(\d+)" height="(\d+)"', text)
    assert maps == [("480", "320")] * 4  # 15 x 10 cells of 32 pixels, for two slides with two maps each
    shown = re.findall(r'<image class="map" data-key="([^"]+)" x=', text)
    assert shown == ["abmil · contribution"] * 2


def test_signed_and_unsigned_maps_have_legends_with_numbers(made: tuple[Project, Page, str]) -> None:
    _, page, _ = made
    legends = [d for d in page.text["div"] if "attribution" in d or "attention" in d]
    assert any(re.search(r"-1\s+1\s+attribution: above 0 is evidence for", d) for d in legends)


def test_the_sign_is_explained_for_classes_values_and_risks() -> None:
    assert sign_meaning("tumour") == "above 0 is evidence for tumour, below against it"
    assert sign_meaning("value") == "above 0 raises the predicted value, below lowers it"
    assert sign_meaning("risk") == "above 0 raises the predicted risk, below lowers it"


@pytest.mark.parametrize(
    ("unit", "legend"),
    [("value", "predicted value, in the unit of the label"), ("risk", "risk (log hazard)"), ("fraction", "fraction")],
)
def test_legends_name_the_unit(tmp_path: Path, unit: Unit, legend: str) -> None:
    project = make_project(tmp_path, ("a",))
    explain_alone(project, np.linspace(3, 7, 35), unit)
    paint(project)
    assert view(project) == []
    page = Page(project.folder.report.read_text(encoding="utf-8"))
    assert [d for d in page.text["div"] if f"abmil instance: {unit}" in d and legend in d]


@pytest.mark.parametrize("unit", ["probability", "risk"])
def test_a_constant_map_is_not_shown_as_evidence(tmp_path: Path, unit: Unit) -> None:
    project = make_project(tmp_path, ("a",))
    explain_alone(project, np.full(35, 0.9), unit)
    paint(project)
    assert view(project) == []
    text = project.folder.report.read_text(encoding="utf-8")
    page = Page(text)
    assert [d for d in page.text["div"] if "the same for all patches: not evidence for any of them" in d]
    assert [p for p in page.text["p"] if "so it ranks none above the others" in p]
    assert 'class="mark"' not in text  # no patch is shown among the highest
    (uri,) = re.findall(r'<image class="map"[^>]*href="([^"]+)"', text)
    pixels = np.asarray(opened(uri).convert("RGBA")).reshape(-1, 4)
    assert len({tuple(pixel[:3]) for pixel in pixels.tolist() if pixel[3]}) == 1


def explain_alone(project: Project, scores: np.ndarray, unit: Unit) -> None:
    """Only a map of the method instance for slide a, with these scores."""
    grid = grid_of(project, "a")
    for method in ("attention", "contribution"):
        project.folder.explanation("abmil", method, "a").unlink()
    found = Explanation(grid, scores.astype(np.float32), "instance", "abmil", unit, unit, False)
    write_explanations(project.folder.explanation("abmil", "instance", "a"), [found], Provenance.of("i", "explain"))


def test_the_annotation_is_outlined_where_there_is_one(made: tuple[Project, Page, str]) -> None:
    _, page, _ = made
    paths = [v for t, n, v in page.attributes if (t, n) == ("path", "d")]
    assert len(paths) == 4  # halo and line, on both pictures of slide a
    assert len(set(paths)) == 1
    points = re.findall(r"(\d+) (\d+)", paths[0])
    assert {(int(x), int(y)) for x, y in points} == {(10, 10), (200, 10), (200, 150)}


def test_top_patches_are_the_pixels_of_the_slide(made: tuple[Project, Page, str]) -> None:
    _, page, _ = made
    sources = [v for t, n, v in page.attributes if (t, n) == ("img", "src")]
    assert len(sources) == 16  # eight per slide with an explanation; evaluate was not run, so no ROC
    assert all(opened(s).size == (64, 64) for s in sources)


def test_plots_of_evaluate_are_shown_only_with_its_report(tmp_path: Path) -> None:
    project = make_project(tmp_path, ("b",))
    folder = project.folder.evaluate
    folder.mkdir()
    for name in ("roc.png", "reliability.png", "another.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    assert view(project) == []
    assert "Reliability" not in project.folder.report.read_text(encoding="utf-8")
    (folder / "report.json").write_text(json.dumps({"models": {}, "maps": [], "notes": ["few slides"]}))
    assert view(project) == []
    page = Page(project.folder.report.read_text(encoding="utf-8"))
    captions = ["ROC curves", "Reliability diagrams"]
    assert [t for t in page.text["figcaption"] if t in captions] == captions


def test_the_selected_method_is_shown_first_and_its_measure_is_in_the_report(tmp_path: Path) -> None:
    project = make_project(tmp_path, ("a",), explain={"methods": ["contribution", "auto"]})
    selection = {"method": "attention", "aupc": {"attention": 0.25, "contribution": 0.5}, "random": 0.75, "slides": 3}
    project.folder.selection("abmil").write_text(json.dumps(selection))
    explain(project, grid_of(project, "a"), "e2", selected="attention")
    paint(project)
    assert view(project) == []
    text = project.folder.report.read_text(encoding="utf-8")
    assert re.findall(r'<image class="map" data-key="([^"]+)" x=', text) == ["abmil · attention"]
    rows = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)]
    assert ["attention", "0.250", "selected"] in rows
    assert ["random", "scores", "0.750"] in rows


def test_a_second_run_touches_no_file(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    view(project)
    before = stamps(project.folder.root)
    assert len([p for p in before if p.startswith("view/")]) >= 12
    view(project)
    assert stamps(project.folder.root) == before


def test_new_predictions_rebuild_only_the_report_and_new_scores_only_their_slide(tmp_path: Path) -> None:
    def changed() -> set[str]:
        before = stamps(project.folder.root)
        assert view(project) == []
        after = stamps(project.folder.root)
        assert before.keys() == after.keys()
        return {p for p in after if after[p] != before.get(p) and ".made" not in p}

    project = make_project(tmp_path)
    view(project)
    predict(project, 0.2)
    assert changed() == {"report.html"}
    explain(project, grid_of(project, "a"), "e2", sign=-1)
    paint(project)
    assert changed() == {"view/a.geojson", "view/panels/a.html", "report.html"}


def grid_of(project: Project, slide_id: str) -> PatchGrid:
    from wsi_pipeline.store import read_grid

    return read_grid(project.folder.grid(slide_id))[0]


def test_equal_input_gives_equal_bytes_in_another_folder(tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        project = make_project(folder, ("a", "b"))
        view(project)
        paths = [project.folder.report, *project.folder.view.rglob("*")]
        return {p.name: p.read_bytes() for p in paths if p.is_file()}

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_slide_that_cannot_be_opened_lacks_only_its_pictures(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    lost = tmp_path / "lost.png"
    lost.write_bytes(b"")
    rows = tuple(SlideRow(**{**vars(r), "path": lost if r.slide_id == "a" else r.path}) for r in project.slides)
    ((slide_id, stage, error),) = [(f.slide_id, f.stage, f.error) for f in view(Project(project.config, rows, rows))]
    assert (slide_id, stage, error) == ("a", "view", "SlideError")
    page = Page(project.folder.report.read_text(encoding="utf-8"))
    assert page.tags["article"] == 3
    assert ["failed in view: " in a for a in page.text["article"]] == [True, False, False]
    assert page.tags["svg"] == 6  # those of the other two, and one bar per prediction
    assert (project.folder.view / "a.geojson").exists()


def test_a_slide_that_failed_before_has_its_thumbnail_but_no_map_of_an_earlier_run(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    failed = Failure("a", "embed", "SlideError", "too few patches")
    assert view(project, (failed,)) == [failed]
    page = Page(project.folder.report.read_text(encoding="utf-8"))
    article = page.text["article"][0]
    assert "failed in embed: too few patches" in article
    assert "This run has no map yet" in article
    assert not (project.folder.view / "a.geojson").exists()


def test_a_heatmap_of_other_scores_is_not_shown(tmp_path: Path) -> None:
    project = make_project(tmp_path, ("a",))
    explain(project, grid_of(project, "a"), key="e2")
    assert view(project) == []
    assert 'class="map"' not in project.folder.report.read_text(encoding="utf-8")


def test_viewing_one_slide_keeps_the_others_in_the_report(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    view(project)
    view(Project(project.config, project.slides[:1], project.cohort))
    page = Page(project.folder.report.read_text(encoding="utf-8"))
    assert page.tags["image"] == 1 + 3 * 2  # thumbnails and maps as before


def test_of_a_long_manifest_the_first_slides_are_shown_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (view_stage, report_module):
        monkeypatch.setattr(module, "MOST_PICTURED", 2)
    project = make_project(tmp_path)
    assert view(project) == []
    text = project.folder.report.read_text(encoding="utf-8")
    assert Page(text).tags["article"] == 2
    assert "The first 2 slides are shown; the other 1 are listed above" in text
    assert len(list((project.folder.view / "panels").glob("*.html"))) == 2
    assert len(list(project.folder.view.glob("*.geojson"))) == 2  # both slides with an explanation


def test_an_unreadable_annotation_gives_a_note(tmp_path: Path) -> None:
    project = make_project(tmp_path, ("a",))
    assert project.slides[0].annotation is not None
    project.slides[0].annotation.write_text("no annotation")
    assert view(project) == []
    assert "no outline: the annotation" in project.folder.report.read_text(encoding="utf-8")


def test_the_report_notes_where_there_are_fewer_tiles_than_patches(tmp_path: Path) -> None:
    project = make_project(tmp_path, ("a",), view={"max_tiles": 10})
    assert view(project) == []
    assert "QuPath tiles: the 10 of 35 with the largest |scores| only" in project.folder.report.read_text("utf-8")
    tiles = json.loads((project.folder.view / "a.geojson").read_text())["features"]
    assert len(tiles) == 11


def test_a_noisy_slide_with_four_maps_stays_small_enough_for_24_of_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (640, 640, 3)).astype(np.uint8)  # the largest possible JPEG
    Image.fromarray(noise).save(tmp_path / "slide.png")
    project = make_project(tmp_path, ("a",))
    assert view(project) == []
    assert (project.folder.view / "panels" / "a.html").stat().st_size < 20e6 / 24
