"""The public Python API: its names and signatures, the numbers of the stages, run folders that were moved."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import yaml
from matplotlib import pyplot as plt

import wsi_pipeline as wsi
from wsi_pipeline.aggregate.checkpoint import load_card
from wsi_pipeline.api.maps import ExplanationMap
from wsi_pipeline.api.prediction import Prediction
from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.config import TileConfig
from wsi_pipeline.demo import draw_cohort
from wsi_pipeline.errors import ArtifactError, ConfigError, EmptySlideError, SlideError, UnknownNameError, WsiError
from wsi_pipeline.predict.member_logits import read_member_logits
from wsi_pipeline.project import read_manifest
from wsi_pipeline.store import read_explanations, read_grid, write_explanations, write_grid
from wsi_pipeline.types import Explanation, PatchGrid, TissueMask

ROOT = Path(__file__).resolve().parents[1]
PATH = "str | os.PathLike[str]"
SIGNATURES = {
    "Run": f"(path: {PATH}, *, manifest: {PATH} | None = None) -> None",
    "embed_patches": f"(slide: Slide, grid: PatchGrid, *, encoder: str | None = None, weights: {PATH} | None = None, "
    "device: str | None = None, scaling: Literal['exact', 'dct'] = 'exact', config: EmbedConfig | None = None) "
    "-> FeatureBag",
    "explain_bag": "(model: TrainedModel, bag: FeatureBag, method: str = 'contribution', target: str | None = None, "
    "**options: Any) -> ExplanationMap",
    "find_tissue": "(slide: Slide, *, config: TileConfig | None = None, slide_id: str | None = None) -> TissueMask",
    "load_config": f"(path: {PATH}, overrides: Sequence[str] | None = None) -> Config",
    "load_model": f"(path: {PATH}, *, device: str = 'auto', allow_plugins: Collection[str] = ()) -> TrainedModel",
    "make_grid": "(slide: Slide, tissue: TissueMask, *, mpp: float | None = None, side_px: int | None = None, "
    "overlap: float | None = None, min_tissue: float | None = None, config: TileConfig | None = None, "
    "slide_id: str | None = None) -> PatchGrid",
    "open_slide": f"(path: {PATH}, *, mpp: float | tuple[float, float] | None = None, reader: str = 'auto') "
    "-> CheckedSlide",
    "predict_bag": "(model: TrainedModel, bag: FeatureBag, *, config: PredictConfig | None = None) -> Prediction",
    "read_bag": f"(path: {PATH}) -> FeatureBag",
    "read_heatmap": f"(path: {PATH}) -> Heatmap",
    "run_pipeline": f"(config: Config | {PATH}, *, stages: Sequence[str] | None = None, "
    "only: Sequence[str] | None = None) -> Run",
}
METHODS = ["attention", "contribution", "gradient_x_input"]
SETTINGS = {
    "slides": "slides.csv",
    "out": "run",
    "tile": {"mpp": 1.0, "side_px": 64},
    "embed": {"encoder": "timm:test_efficientnet.r160_in1k", "pretrained": False},
    "aggregate": {
        "models": ["abmil", {"name": "transmil", "id": "tm", "options": {"hidden": 64, "landmarks": 16}}],
    },
    "train": {"folds": 2, "epochs": 3, "val_fraction": 0.34},
    "explain": {"methods": METHODS},
    "evaluate": {"bootstrap": 20},
}
STAGES = ["tile", "embed", "train", "predict", "explain", "heatmap", "evaluate"]


@pytest.fixture(scope="module", autouse=True)
def headless() -> Any:
    with matplotlib.rc_context():
        plt.switch_backend("agg")
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six drawn slides, a config, and a run made by the stages."""
    folder = tmp_path_factory.mktemp("study")
    draw_cohort(str(folder), slides=6, patients=6, side_px=1500, workers=1)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    run = wsi.run_pipeline(str(folder / "config.yaml"), stages=STAGES)
    assert run.failures == ()
    return folder


@pytest.fixture
def run(study: Path) -> wsi.Run:
    return wsi.Run(study / "run")


# --- names ---------------------------------------------------------------------------------------------------


def test_the_names_and_their_signatures() -> None:
    assert sorted(wsi.__all__) == sorted([*SIGNATURES, "__version__"])
    assert dir(wsi) == sorted(wsi.__all__)
    unquoted = str.maketrans("", "", "'\"")  # annotations are strings
    for name, signature in SIGNATURES.items():
        found = str(inspect.signature(getattr(wsi, name)))
        assert found.translate(unquoted) == signature.translate(unquoted)
    assert all(inspect.getdoc(getattr(wsi, name)) for name in SIGNATURES)


def test_no_name_is_a_module_that_an_import_would_put_in_its_place() -> None:
    modules = {path.stem for path in (ROOT / "wsi_pipeline").iterdir()}
    assert "explain" in modules
    assert modules.isdisjoint(wsi.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'wsi_pipeline' has no attribute 'open_slyde'"):
        _ = wsi.open_slyde  # type: ignore[attr-defined]


def loaded_after(code: str, folder: Path) -> set[str]:
    code += "\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    heavy = {"numpy", "torch", "pydantic", "h5py", "matplotlib", "pandas", "yaml"}
    assert loaded_after("import wsi_pipeline as wsi\ndir(wsi), wsi.__version__", tmp_path) & heavy == set()


def test_types_are_shipped() -> None:
    assert (ROOT / "wsi_pipeline" / "py.typed").exists()


# --- str and Path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_every_path_may_be_a_string(study: Path, kind: type[str] | type[Path]) -> None:
    folder = study / "run"
    with wsi.open_slide(kind(study / "slides" / "slide_03.tif")) as slide:
        assert slide.sizes[0] == (1500, 1500)
    assert wsi.load_config(kind(study / "config.yaml")).out == folder
    assert len(wsi.read_bag(kind(folder / "embed" / "slide_03.h5")).grid) > 10
    assert len(read_grid(kind(folder / "tile" / "slide_03.h5"))[0]) > 10
    assert read_explanations(kind(folder / "explain" / "abmil" / "attention" / "slide_03.h5"))[0].model == "abmil"
    assert wsi.read_heatmap(kind(folder / "heatmap" / "slide_03.ome.zarr")).slide_id == "slide_03"
    assert len(wsi.load_model(kind(folder / "train" / "abmil"))) == 2
    assert load_card(kind(folder / "train" / "abmil" / "seed0_fold0")).model == "abmil"
    assert len(read_manifest(kind(study / "slides.csv"))) == 6
    assert len(wsi.Run(kind(folder))) == 6
    assert len(wsi.run_pipeline(kind(study / "config.yaml"), stages=["tile"], only=["slide_01"])) == 6


# --- the numbers of the stages -------------------------------------------------------------------------------


def test_each_step_gives_the_numbers_of_the_stage(study: Path, run: wsi.Run) -> None:
    results, config = run["slide_03"], run.config
    with wsi.open_slide(study / "slides" / "slide_03.tif") as slide:
        tissue = wsi.find_tissue(slide, config=config.tile)
        grid = wsi.make_grid(slide, tissue, config=config.tile)
        bag = wsi.embed_patches(slide, grid, config=config.embed)
    np.testing.assert_array_equal(tissue.tissue, results.tissue.tissue)
    assert tissue.side_px0 == results.tissue.side_px0
    assert {**vars(grid), "xy_px0": 0} == {**vars(results.grid), "xy_px0": 0}
    np.testing.assert_array_equal(grid.xy_px0, results.grid.xy_px0)
    np.testing.assert_array_equal(bag.features, results.bag.features)
    assert bag.features.dtype == np.float16
    assert (bag.encoder, bag.weights_digest) == (results.bag.encoder, results.bag.weights_digest)
    rows = {row["model"]: row for row in run.predictions().to_dict("records") if row["slide_id"] == "slide_03"}
    stored = read_member_logits(run.path / "predict" / "members" / "slide_03.csv")
    for label in run.models:
        model = results.model(label, device="cpu")
        assert (len(model), model.task, model.classes) == (1, "classification", ("normal", "tumor"))
        prediction = wsi.predict_bag(model, bag)
        np.testing.assert_array_equal(prediction.logits, stored[label][0])
        row = rows[label]
        assert prediction.predicted == row["predicted"]
        assert prediction.outcome == {"normal": row["prob_normal"], "tumor": row["prob_tumor"]}
        assert prediction.probabilities == prediction.outcome
        assert prediction.prediction_set == tuple(row["set"].split(";"))
        assert prediction.entropy == pytest.approx(row["entropy"], abs=1e-6)
        assert prediction.threshold == pytest.approx(row["threshold"], abs=1e-6)
    for label, method in results.explanations:
        made = wsi.explain_bag(results.model(label, device="cpu"), bag, method)
        read = results.explanation(label, method)
        np.testing.assert_array_equal(made.scores, read.scores)
        facts = ("method", "model", "target", "unit", "signed", "residual")
        assert [getattr(made, fact) for fact in facts] == [getattr(read, fact) for fact in facts]


def test_arguments_take_precedence_over_the_config(study: Path) -> None:
    with wsi.open_slide(study / "slides" / "slide_03.tif") as slide:
        tissue = wsi.find_tissue(slide)
        grid = wsi.make_grid(slide, tissue, mpp=1.0, overlap=0.5, config=TileConfig(side_px=64), slide_id="case 7")
    assert (grid.slide_id, grid.target_mpp, grid.side_px) == ("case 7", 1.0, 64)
    assert grid.side_px0 == (128.0, 128.0)
    assert grid.stride_px0 == (64.0, 64.0)


def test_a_region_of_interest_restricts_the_tissue(study: Path, tmp_path: Path) -> None:
    square = [[[0, 0], [750, 0], [750, 1500], [0, 1500], [0, 0]]]
    geojson = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}, "properties": {}}
    (tmp_path / "slide_03.geojson").write_text(json.dumps(geojson), encoding="utf-8")
    with wsi.open_slide(study / "slides" / "slide_03.tif") as slide:
        whole = wsi.find_tissue(slide).tissue
        part = wsi.find_tissue(slide, config=TileConfig(roi=tmp_path)).tissue
    half = whole.shape[1] // 2
    np.testing.assert_array_equal(part[:, : half - 1], whole[:, : half - 1])
    assert not part[:, half + 1 :].any()


def test_the_resolution_may_be_given(study: Path) -> None:
    with wsi.open_slide(study / "slides" / "slide_03.tif", mpp=(0.25, 0.26)) as slide:
        assert slide.mpp == (0.25, 0.26)
        assert repr(slide) == "<slide slide_03.tif: 1500 x 1500 px, 0.25 x 0.26 µm/px, 4 levels, generic-tiff>"
        assert slide.thumbnail(300).shape == (300, 300, 3)


def test_a_folder_of_folds_is_an_ensemble_and_held_out_drops_members(run: wsi.Run) -> None:
    model = wsi.load_model(run.path / "train" / "tm", device="cpu")
    assert (model.name, len(model.members), len(model.cards)) == ("transmil", 2, 2)
    assert run.model("tm", device="cpu").name == "tm"
    (kept,) = model.held_out("patient_06", ["slide_03"]).folders
    assert "patient_06" not in load_card(kept).trained["seen_patients"]
    single = wsi.load_model(run.path / "train" / "tm" / "seed0_fold1", device="cpu")
    with pytest.raises(ArtifactError, match="every member of transmil was trained on patient"):
        single.held_out(single.card.trained["seen_patients"][0])
    bag = run["slide_03"].bag
    each = [wsi.explain_bag(wsi.load_model(f, device="cpu"), bag, "attention").scores for f in model.folders]
    mean = np.mean([scores.astype(np.float64) for scores in each], axis=0).astype(np.float32)
    np.testing.assert_array_equal(wsi.explain_bag(model, bag, "attention").scores, mean)


def test_a_target_and_options_reach_the_method(run: wsi.Run) -> None:
    model, bag = run.model("abmil", device="cpu"), run["slide_03"].bag
    tumour, normal = (wsi.explain_bag(model, bag, target=name) for name in ("tumor", "normal"))
    np.testing.assert_allclose(normal.scores, -tumour.scores, rtol=1e-5)
    assert wsi.explain_bag(model, bag).target == "tumor"
    few, more = (wsi.explain_bag(model, bag, "integrated_gradients", steps=steps) for steps in (2, 3))
    assert not np.array_equal(few.scores, more.scores)


# --- run folders ---------------------------------------------------------------------------------------------


def test_a_run_lists_its_slides_models_and_tables(run: wsi.Run) -> None:
    assert run.slides == tuple(f"slide_{i:02}" for i in range(1, 7))
    assert list(run) == list(run.slides)
    assert "slide_03" in run
    assert "slide_3" not in run
    assert run.models == ("abmil", "tm")
    assert run.failures == ()
    assert run.config.tile.side_px == 64
    results = run["slide_03"]
    pairs = [(model, method) for model in ("abmil", "tm") for method in METHODS]
    assert results.explanations == tuple(sorted({*pairs} - {("tm", "contribution")}))
    assert results.row is not None
    assert results.row.label == "tumor"
    assert results.annotation is not None
    assert results.annotation.area().area > 1000
    assert run["slide_01"].annotation is None
    assert results.thumbnail(200).shape == (200, 200, 3)
    with results.slide() as slide:
        assert slide.mpp == (0.5, 0.5)


def test_tables_are_data_frames_with_numbers_as_numbers(run: wsi.Run) -> None:
    predictions = run.predictions()
    assert len(predictions) == 12
    assert predictions["held_out"].all()
    assert predictions["prob_tumor"].between(0, 1).all()
    assert predictions["members"].tolist() == [1] * 12
    assert set(predictions["slide_id"]) == set(run.slides)
    assert len(run.patients()) == 12
    metrics = run.metrics()
    assert {"auroc", "auprc"} <= set(metrics["metric"])
    assert metrics["value"].dtype == float
    assert set(run.metrics("maps")["method"]) == set(METHODS)
    with pytest.raises(ArtifactError, match=r"kappa\.csv does not exist; tables of this run: maps, metrics,"):
        run.metrics("kappa")


def test_tables_of_another_schema_are_refused(run: wsi.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "old")
    for table in ("predict/.made/predictions.csv.json", "evaluate/.made/report.json.json"):
        made = tmp_path / "old" / table
        made.write_text(made.read_text().replace('"schema": 2', '"schema": 1'))
    old = wsi.Run(tmp_path / "old")
    for read in (old.predictions, old.metrics):
        with pytest.raises(ArtifactError, match="was written with schema 1, this version reads 2"):
            read()


def test_names_that_look_like_numbers_stay_text(run: wsi.Run, tmp_path: Path) -> None:
    (tmp_path / "predict").mkdir()
    (tmp_path / "predict" / "predictions.csv").write_text(
        "slide_id,patient_id,label,held_out,members,threshold,prob_NA\n001,NA,1,true,5,,0.5\n", encoding="utf-8"
    )
    (row,) = wsi.Run(tmp_path).predictions().to_dict("records")
    assert (row["slide_id"], row["patient_id"], row["label"]) == ("001", "NA", "1")
    assert (row["held_out"], row["members"], row["prob_NA"]) == (True, 5, 0.5)
    assert np.isnan(row["threshold"])


def test_a_list_of_one_number_is_text_as_a_list_of_two(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    for values in ("0.900000", "0.900000 0.800000"):
        (tmp_path / "evaluate" / "seeds.csv").write_text(f"model,values\nmean,{values}\n", encoding="utf-8")
        assert wsi.Run(tmp_path).metrics("seeds")["values"].tolist() == [values]


def test_a_run_that_was_moved_reads_the_same(study: Path, run: wsi.Run, tmp_path: Path) -> None:
    """With its slides beside it, and alone."""
    before = run["slide_03"].explanation("abmil", "contribution").scores
    for name in ("slides", "annotations", "run"):
        shutil.copytree(study / name, tmp_path / "there" / name)
    shutil.copy(study / "slides.csv", tmp_path / "there" / "slides.csv")
    config = tmp_path / "there" / "run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(study), "/gone/study"), encoding="utf-8")
    moved = wsi.Run(tmp_path / "there" / "run")
    assert moved.config.out == tmp_path / "there" / "run"
    assert moved.config.slides == tmp_path / "there" / "slides.csv"
    assert moved.slides == run.slides
    assert moved["slide_03"].annotation is not None
    np.testing.assert_array_equal(moved["slide_03"].thumbnail(), run["slide_03"].thumbnail())
    assert moved["slide_03"].model("abmil", device="cpu").folders[0].is_relative_to(tmp_path)

    shutil.move(tmp_path / "there" / "run", tmp_path / "alone")
    alone = wsi.Run(tmp_path / "alone")
    assert alone.slides == run.slides
    assert (alone.rows, alone["slide_03"].row, alone["slide_03"].annotation) == ({}, None, None)
    np.testing.assert_array_equal(alone["slide_03"].explanation("abmil", "contribution").scores, before)
    assert len(alone.predictions()) == 12
    with pytest.raises(SlideError, match=r"slide_03 cannot be opened: the manifest of .*alone is not found; give it"):
        alone["slide_03"].slide()
    assert alone["slide_03"].thumbnail(400).shape == (400, 400, 3)  # of tile/quality
    with pytest.raises(ArtifactError, match="the patient of slide_03 is not known"):
        alone["slide_03"].model("abmil")
    given = wsi.Run(tmp_path / "alone", manifest=str(study / "slides.csv"))
    assert given["slide_03"].annotation is not None

    shutil.rmtree(tmp_path / "alone" / "tile" / "quality")
    with pytest.raises(SlideError, match=r"slide_03 has no picture: .* does not exist either"):
        alone["slide_03"].thumbnail()
    alone["slide_03"].explanation("abmil", "contribution").plot()  # over the tissue mask


def test_everything_but_models_is_read_without_torch(study: Path) -> None:
    code = """
import matplotlib
matplotlib.use("agg")
import wsi_pipeline as wsi
run = wsi.Run("run")
results = run["slide_03"]
results.grid, results.tissue, results.bag, results.row, results.annotation, results.explanations
results.thumbnail(), results.slide().close()
results.explanation("abmil", "contribution").plot()
results.heatmap().plot()
run.predictions(), run.patients(), run.metrics(), run.failures, run.models, run.config
repr(run), run._repr_html_(), results._repr_html_()
with wsi.open_slide("slides/slide_03.tif") as slide:
    wsi.make_grid(slide, wsi.find_tissue(slide))
wsi.read_bag("run/embed/slide_03.h5"), wsi.load_config("config.yaml")
"""
    assert loaded_after(code, study) & {"torch", "torchvision", "timm", "lightning", "captum"} == set()


def test_reading_a_run_writes_nothing(study: Path, run: wsi.Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "run").rglob("*")}
    results = run["slide_03"]
    results.model("abmil", device="cpu")
    results.heatmap().plot()
    run._repr_html_()
    assert {path: path.stat().st_mtime_ns for path in (study / "run").rglob("*")} == before


def test_a_model_from_elsewhere_is_found_by_its_run(study: Path, run: wsi.Run) -> None:
    overrides = ["out=applied", f"predict.model={study / 'run' / 'train' / 'abmil'}"]
    config = wsi.load_config(study / "config.yaml", overrides)
    applied = wsi.run_pipeline(config, stages=["tile", "embed", "predict", "explain"], only=["slide_03"])
    assert applied.models == ("abmil",)
    assert len(applied.model("abmil", device="cpu")) == 2
    with pytest.raises(UnknownNameError, match="has no model 'tm'; it has: abmil"):
        applied.model("tm")


# --- pictures ------------------------------------------------------------------------------------------------


def small_map(unit: Any = "attribution", signed: bool = True, **more: Any) -> ExplanationMap:
    """Three patches of 100 px0 in a row; the middle one is missing."""
    grid = PatchGrid(
        slide_id="a <b>",
        xy_px0=np.array([[0, 0], [200, 0], [300, 0]], np.int64),
        side_px=50,
        side_px0=(100.0, 100.0),
        stride_px0=(100.0, 100.0),
        target_mpp=1.0,
        mpp=(0.5, 0.5),
        slide_size_px0=(400, 200),
        bounds_px0=(0, 0, 400, 200),
    )
    scores = np.array([-1.0, 0.25, 2.0], np.float32)
    return ExplanationMap(grid, scores, "some<method>", "abmil", "tumor", unit, signed, **more)


def test_a_map_is_drawn_in_level_0_pixels_with_its_unit() -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    _, given = plt.subplots()
    ax = small_map().plot(given, over=picture)
    assert ax is given
    below, above = ax.get_images()
    assert tuple(below.get_extent()) == (0, 400, 200, 0)
    assert tuple(above.get_extent()) == (0, 400, 200, 0)
    expected = np.full((4, 8), np.nan, np.float32)
    expected[:2, :2], expected[:2, 4:6], expected[:2, 6:] = -1.0, 0.25, 2.0
    values = above.get_array()
    assert values is not None
    np.testing.assert_array_equal(np.ma.filled(values, np.nan), expected)
    low, high = above.get_clim()
    assert low == -high
    assert above.get_cmap().name == "RdBu_r"
    assert ax.get_title() == "abmil some<method>: tumor"
    legend = ax.figure.axes[-1]
    assert legend.get_ylabel() == "attribution"
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 400), (200, 0))


def test_probabilities_are_drawn_from_0_to_1_and_a_window_may_be_given() -> None:
    ax = small_map("probability", signed=False).plot(colorbar=False)
    (image,) = ax.get_images()
    assert image.get_clim() == (0.0, 1.0)
    assert image.get_cmap().name == "viridis"
    assert image.get_alpha() == 1.0
    assert len(ax.figure.axes) == 1
    assert small_map().plot(window=(-3, 3)).get_images()[0].get_clim() == (-3, 3)


def test_the_heatmap_shows_the_same_map(run: wsi.Run) -> None:
    results = run["slide_03"]
    explanation, heatmap = results.explanation("abmil", "contribution"), results.heatmap()
    label = "abmil contribution: tumor"
    column, line = (explanation.grid.centre_px0 // heatmap.cell_px0).astype(int).T
    np.testing.assert_array_equal(heatmap.values(label)[line, column], explanation.scores)
    drawn = [
        ax.get_images()[1] for ax in (explanation.plot(), heatmap.plot(label), results.plot("abmil", "contribution"))
    ]
    assert len({image.get_clim() for image in drawn}) == 1
    assert heatmap.plot().get_title() == label, "what viewers show first"
    with pytest.raises(UnknownNameError, match="has no channel 'nothing'; it has: abmil attention: tumor, abmil contr"):
        heatmap.plot("nothing")


def test_an_open_slide_is_drawn_below(study: Path) -> None:
    run = wsi.Run(study / "run")
    model = run.model("abmil", device="cpu")
    with wsi.open_slide(study / "slides" / "slide_03.tif") as slide:
        ax = wsi.explain_bag(model, run["slide_03"].bag).plot(over=slide)
        below = ax.get_images()[0].get_array()
        assert below is not None
        np.testing.assert_array_equal(below, slide.thumbnail())


def test_reprs_in_a_notebook_escape_every_value(tmp_path: Path) -> None:
    found = small_map()
    name = "<i>&.h5"
    grid = PatchGrid(**{**vars(found.grid), "slide_id": "<i>&"})
    provenance = Provenance.of("k", "tile")
    write_grid(tmp_path / "<u>run" / "tile" / name, grid, TissueMask(np.ones((2, 4), bool), (100.0, 100.0)), provenance)
    stored = Explanation(grid, found.scores, "some<method>", "<s>", "tumor", "attribution", True)
    write_explanations(tmp_path / "<u>run" / "explain" / "<s>" / "some<method>" / name, [stored], provenance)
    run = wsi.Run(tmp_path / "<u>run")
    pages = [run._repr_html_(), run["<i>&"]._repr_html_(), run["<i>&"].explanation("<s>", "some<method>")._repr_html_()]
    for page in pages:
        assert not any(tag in page for tag in ("<u>", "<i>", "<s>", "<method>"))
        assert "&lt;i&gt;&amp;" in page
    assert "✓" in pages[0]


def test_reprs_are_short(run: wsi.Run) -> None:
    model, bag = run.model("abmil", device="cpu"), run["slide_03"].bag
    assert repr(run) == "<run run: 6 slides; abmil, tm>"
    assert repr(run["slide_03"].tissue).startswith("<tissue mask: 94 x 94 cells of 16 x 16 px, ")
    assert repr(bag.grid) == f"<grid of slide_03: {len(bag.grid)} patches of {bag.grid.side_px} px at 1 µm/px>"
    assert repr(bag).startswith(f"<bag of slide_03: {len(bag.grid)} patches x ")
    assert repr(model) == "<abmil: classification of normal, tumor; 2 members on cpu>"
    assert repr(run["slide_03"]) == "<slide slide_03 of run: 5 explanations>"
    assert repr(wsi.predict_bag(model, bag)).startswith("<slide_03, abmil: normal 0.")
    assert "<th>calibrated</th>" in wsi.predict_bag(model, bag)._repr_html_()
    assert repr(wsi.explain_bag(model, bag)).startswith(
        f"<slide_03, abmil contribution: tumor: {len(bag.grid)} patches, "
    )
    assert repr(run["slide_03"].heatmap()).startswith("<heatmap of slide_03: 47 x 47 cells of 32 px; abmil attention")


# --- errors --------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_one_line_that_says_what_to_do(study: Path, run: wsi.Run, tmp_path: Path) -> None:
    model, transmil, bag = run.model("abmil", device="cpu"), run.model("tm", device="cpu"), run["slide_03"].bag
    other = wsi.read_bag(study / "run" / "embed" / "slide_03.h5")
    other = type(other)(other.grid, other.features, "lite0", other.weights_digest)
    slide = wsi.open_slide(study / "slides" / "slide_03.tif")
    nothing = TissueMask(np.zeros((94, 94), bool), (16.0, 16.0))
    cases: list[tuple[type[WsiError], str, Any]] = [
        (SlideError, r"nowhere\.svs does not exist", lambda: wsi.open_slide("nowhere.svs")),
        (UnknownNameError, "there is no reader called 'magic'", lambda: wsi.open_slide(slide.path, reader="magic")),
        (
            ConfigError,
            r"open_slide: mpp = -1: Input should be greater than 0$",
            lambda: wsi.open_slide(slide.path, mpp=-1),
        ),
        (ConfigError, "make_grid: side_px = 0: ", lambda: wsi.make_grid(slide, nothing, side_px=0)),
        (EmptySlideError, "no patch holds 50% of it; lower min_tissue", lambda: wsi.make_grid(slide, nothing)),
        (
            UnknownNameError,
            "there is no tissue detector called 'magic'",
            lambda: wsi.find_tissue(slide, config=TileConfig(detector="magic")),
        ),
        (
            UnknownNameError,
            "there is no encoder called 'uni9'",
            lambda: wsi.embed_patches(slide, bag.grid, encoder="uni9"),
        ),
        (
            ConfigError,
            "embed_patches: scaling = 'dtc'",
            lambda: wsi.embed_patches(slide, bag.grid, scaling="dtc"),  # type: ignore[arg-type]
        ),
        (UnknownNameError, "has no channel 99; it has 5, from 0", lambda: run["slide_03"].heatmap().plot(99)),
        (UnknownNameError, "has no level 9; it has 1, from 0", lambda: run["slide_03"].heatmap().values(0, 9)),
        (UnknownNameError, "has no slide 0; it has 6, see run.slides", lambda: run[0]),  # type: ignore[index]
        (ArtifactError, r"no model\.json in .* or below", lambda: wsi.load_model(tmp_path)),
        (
            ArtifactError,
            r"train holds 2 models \(abmil, transmil\); give the folder of one",
            lambda: wsi.load_model(study / "run" / "train"),
        ),
        (ConfigError, "device 'tpu' is unknown", lambda: wsi.load_model(study / "run" / "train" / "tm", device="tpu")),
        (
            ConfigError,
            "contribution does not fit: tm .*; methods that fit: attention, ",
            lambda: wsi.explain_bag(transmil, bag),
        ),
        (
            UnknownNameError,
            "abmil has no class 'cat'; it has: normal, tumor",
            lambda: wsi.explain_bag(model, bag, target="cat"),
        ),
        (ConfigError, "explainer 'lime' has no option 'sample'", lambda: wsi.explain_bag(model, bag, "lime", sample=1)),
        (ArtifactError, "does not fit the model: it has encoder 'lite0'", lambda: wsi.predict_bag(model, other)),
        (ArtifactError, "nowhere is not a folder; give the run folder", lambda: wsi.Run("nowhere")),
        (ArtifactError, "is not a run folder: it holds neither config.yaml nor", lambda: wsi.Run(tmp_path)),
        (UnknownNameError, "has no slide 'slide_3'; did you mean 'slide_03'?", lambda: run["slide_3"]),
        (
            UnknownNameError,
            "slide_03 has no explanation abmil/lime; it has: abmil/attention, ",
            lambda: run["slide_03"].explanation("abmil", "lime"),
        ),
        (
            UnknownNameError,
            "has no class 'cat'; give target, one of: tumor",
            lambda: run["slide_03"].explanation("abmil", "attention", "cat"),
        ),
        (UnknownNameError, "has no model 'b'; it has: abmil, tm", lambda: run.model("b")),
        (
            UnknownNameError,
            "there is no stage 'trian'; known: tile, ",
            lambda: wsi.run_pipeline(study / "config.yaml", stages=["trian"]),
        ),
        (ConfigError, "cannot read the config nowhere.yaml", lambda: wsi.run_pipeline("nowhere.yaml")),
        (
            ArtifactError,
            r"x\.ome\.zarr does not exist; run `wsi heatmap`",
            lambda: wsi.read_heatmap(tmp_path / "x.ome.zarr"),
        ),
    ]
    for kind, message, act in cases:
        with pytest.raises(kind, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    slide.close()


def test_a_path_is_not_an_opened_slide_bag_or_model(study: Path, run: wsi.Run) -> None:
    model, results = run.model("abmil", device="cpu"), run["slide_03"]
    path: Any = study / "slides" / "slide_03.tif"
    cases: list[tuple[str, Any]] = [
        (r"find_tissue takes an open slide, not a path; wsi\.open_slide\(path\)", lambda: wsi.find_tissue(path)),
        ("make_grid takes an open slide", lambda: wsi.make_grid(path, results.tissue)),
        ("embed_patches takes an open slide", lambda: wsi.embed_patches(str(path), results.grid)),  # type: ignore[arg-type]
        (r"predict_bag takes a bag, not a path; wsi\.read_bag", lambda: wsi.predict_bag(model, path)),
        (r"explain_bag takes a trained model, .* wsi\.load_model", lambda: wsi.explain_bag(path, results.bag)),
        ("takes an open slide or a picture", lambda: results.explanation("abmil", "attention").plot(over=path)),
    ]
    for message, act in cases:
        with pytest.raises(TypeError, match=message):
            act()


def test_several_classes_in_one_file_must_be_told_apart(run: wsi.Run, tmp_path: Path) -> None:
    one = run["slide_03"].explanation("abmil", "attention")
    two = [
        Explanation(one.grid, one.scores + i, "attention", "abmil", name, one.unit, one.signed)
        for i, name in enumerate("ab")
    ]
    shutil.copytree(run.path / "tile", tmp_path / "tile")
    write_explanations(tmp_path / "explain" / "abmil" / "attention" / "slide_03.h5", two, Provenance.of("k", "explain"))
    results = wsi.Run(tmp_path)["slide_03"]
    np.testing.assert_array_equal(results.explanation("abmil", "attention", "b").scores, two[1].scores)
    with pytest.raises(UnknownNameError, match="has several classes; give target, one of: a, b"):
        results.explanation("abmil", "attention")


def test_a_plugin_that_a_model_names_must_be_allowed(run: wsi.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path / "train" / "abmil" / "seed0_fold0", tmp_path / "model")
    card = tmp_path / "model" / "model.json"
    text = card.read_text(encoding="utf-8").replace('"model": "abmil"', '"model": "wsi_pipeline.aggregate.abmil:abmil"')
    card.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"names the plug-in 'wsi_pipeline\.aggregate\.abmil:abmil', which is"):
        wsi.load_model(tmp_path / "model")
    assert len(wsi.load_model(tmp_path / "model", allow_plugins=["wsi_pipeline.aggregate.abmil:abmil"])) == 1


def test_a_regression_has_no_probabilities() -> None:
    nan = float("nan")
    value = Prediction(
        "s", "mean", "regression", {"value": 2.5}, "", None, {"value": 2.5}, None, nan, nan, 0.1, np.zeros((1, 1))
    )
    assert repr(value) == "<s, mean: value 2.500>"
    with pytest.raises(ConfigError, match="mean predicts no probabilities"):
        _ = value.probabilities


# --- a script ------------------------------------------------------------------------------------------------


def test_the_example_runs_on_a_real_slide(shared_data: Path, tmp_path: Path) -> None:
    """Fifteen lines: open, tissue, grid, embed, model, explain, plot."""
    draw_cohort(tmp_path, slides=6, patients=6, side_px=1200, workers=1)
    settings = {"slides": "slides.csv", "out": "run", "train": {"folds": 2, "epochs": 2, "val_fraction": 0.34}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = wsi.run_pipeline(tmp_path / "config.yaml", stages=["tile", "embed", "train"])
    script = ROOT / "docs" / "examples" / "one_slide.py"
    lines = [
        line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith(("#", '"'))
    ]
    assert len(lines) <= 15
    slide = shared_data / "slides" / "cmu-1-small-region.svs"
    command = [sys.executable, str(script), str(slide), str(run.path / "train" / "abmil"), str(tmp_path / "map.png")]
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
