"""One file or one entry point adds a plug-in; a wrong name or option gets one line that lists the right ones."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_pipeline.aggregate import models
from wsi_pipeline.embed import encoders
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.explain.methods import explainers
from wsi_pipeline.read import readers
from wsi_pipeline.registry import Registry
from wsi_pipeline.tile import detectors


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[str]:
    package = tmp_path / "plug_shapes"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from wsi_pipeline.registry import Registry\nshapes = Registry('shape', 'plug_shapes')\n"
    )
    (package / "circle.py").write_text(
        "from . import shapes\n\n@shapes.register('circle', sides=0)\n"
        "def circle(*, radius=1.0):\n    'A round one.\\n\\nMore.'\n    return f'circle {radius}'\n"
    )
    (package / "polygon.py").write_text(
        "from . import shapes\n\n@shapes.register('polygon:')\n"
        "def polygon(sides, *, side=1.0):\n    return f'{sides} {side}'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith(("plug_shapes", "lab_"))]:
        monkeypatch.delitem(sys.modules, name)  # of an earlier test
    found: Registry[str] = importlib.import_module("plug_shapes").shapes
    return found


def test_plugins_are_found_by_folder(shapes: Registry[str]) -> None:
    assert shapes.names() == ["circle", "polygon:"]
    assert shapes.entry("circle").summary == "A round one."
    assert shapes.entry("circle").options == {"radius": 1.0}
    assert shapes.entry("circle").info == {"sides": 0}


def test_options_reach_the_factory(shapes: Registry[str]) -> None:
    assert shapes.build("circle", radius=2.0) == "circle 2.0"


def test_text_after_the_colon_reaches_a_prefix_plugin(shapes: Registry[str]) -> None:
    assert shapes.build("polygon:seven", side=3) == "seven 3"


def test_a_factory_outside_the_project_is_named_by_module(shapes: Registry[str]) -> None:
    assert shapes.build("os.path:basename", "a/b") == "b"


def test_a_wrong_name_lists_the_right_ones(shapes: Registry[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"no shape called 'circel'; did you mean 'circle'\?.*polygon:"):
        shapes.entry("circel")
    with pytest.raises(UnknownNameError, match="no shape called 'CIRCLE'; did you mean 'circle'"):
        shapes.entry("CIRCLE")


def test_a_module_that_cannot_be_imported_is_one_line(shapes: Registry[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"'nowhere\.at_all:build' cannot be imported"):
        shapes.build("nowhere.at_all:build")


def test_a_wrong_option_lists_the_right_ones(shapes: Registry[str]) -> None:
    with pytest.raises(ConfigError, match="shape 'circle' has no option 'diameter'; it takes: radius"):
        shapes.build("circle", diameter=2)


# --- plug-ins of installed packages ---------------------------------------------------------------------------


def install(folder: Path, distribution: str, entry_points: str, **modules: str) -> None:
    """What pip leaves in site-packages: modules, and a ``.dist-info`` folder with the entry points."""
    info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    importlib.invalidate_caches()


SQUARE = "def square(*, side=2.0):\n    'Four equal sides.'\n    return f'square {side}'\n"


def test_a_plugin_of_an_installed_package_is_imported_when_its_name_is_looked_up(
    shapes: Registry[str], tmp_path: Path
) -> None:
    install(tmp_path, "lab-shapes", "[wsi_pipeline.shapes]\nsquare = lab_square:square\n", lab_square=SQUARE)
    assert shapes.names() == ["circle", "polygon:", "square"]
    assert shapes.build("circle") == "circle 1.0"
    assert "lab_square" not in sys.modules, "listing names and using others imports nothing"
    assert shapes.build("square", side=3.0) == "square 3.0"
    entry = shapes.entry("square")
    assert (entry.package, entry.summary, entry.options) == ("lab-shapes 1.2", "Four equal sides.", {"side": 2.0})
    with pytest.raises(ConfigError, match="shape 'square' has no option 'sides'; it takes: side"):
        shapes.build("square", sides=4)
    with pytest.raises(UnknownNameError, match="did you mean 'square'"):
        shapes.entry("sqare")


def test_facts_of_a_plugin_come_from_the_decorator(shapes: Registry[str], tmp_path: Path) -> None:
    source = "from plug_shapes import shapes\n\n@shapes.register('oval', sides=0)\ndef oval():\n    return 'oval'\n"
    install(tmp_path, "lab-oval", "[wsi_pipeline.shapes]\noval = lab_oval:oval\n", lab_oval=source)
    entry = shapes.entry("oval")
    assert (dict(entry.info), entry.package) == ({"sides": 0}, "lab-oval 1.2")


def test_a_plugin_may_take_the_text_after_the_colon(shapes: Registry[str], tmp_path: Path) -> None:
    source = "def star(points):\n    return f'star of {points}'\n"
    install(tmp_path, "lab-star", "[wsi_pipeline.shapes]\nstar: = lab_star:star\n", lab_star=source)
    assert shapes.build("star:five") == "star of five"


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("lab_bad:missing", "", "AttributeError: module 'lab_bad' has no attribute 'missing'"),
        ("lab_bad:build", "import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("lab_bad:build", "def build(:", "SyntaxError: "),
        ("lab_bad:build", "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("lab_bad:build", "import sys; sys.exit(3)", "SystemExit: 3"),
        ("lab_bad:build", "build = 3", "TypeError: 3 is not a callable object"),
        ("lab_bad", "", "TypeError: <module 'lab_bad'"),
        ("not a value", "", ": "),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line_and_leaves_the_others_alone(
    shapes: Registry[str], tmp_path: Path, value: str, source: str, reason: str
) -> None:
    points = f"[wsi_pipeline.shapes]\nbad = {value}\nsquare = lab_square:square\n"
    install(tmp_path, "lab-bad", points, lab_bad=source, lab_square=SQUARE)
    with pytest.raises(UnknownNameError) as caught:
        shapes.build("bad")
    message = str(caught.value)
    assert message.startswith(f"shape 'bad' of lab-bad 1.2 cannot be loaded from '{value}' (")
    assert reason in message
    assert message.endswith("); update that package or uninstall it")
    assert "\n" not in message
    entries, faults = shapes.listing()
    assert [entry.name for entry in entries] == ["circle", "polygon:", "square"]
    assert len(faults) == 1
    assert faults[0].startswith("shape 'bad' of lab-bad 1.2 cannot be loaded")


def test_a_plugin_with_the_name_of_one_of_ours_is_refused(
    shapes: Registry[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "lab-circle", "[wsi_pipeline.shapes]\ncircle = lab_circle:circle\n", lab_circle=SQUARE)
    line = (
        "shape 'circle' of lab-circle 1.2 is not used: the name is taken by wsi_pipeline; "
        "give its entry point another name"
    )
    with caplog.at_level(logging.WARNING, "wsi_pipeline"):
        assert shapes.build("circle") == "circle 1.0"
    assert [record.getMessage() for record in caplog.records] == [line]
    assert shapes.listing()[1] == [line]
    assert "lab_circle" not in sys.modules


def test_a_decorator_cannot_take_the_name_of_one_of_ours_either(shapes: Registry[str]) -> None:
    with pytest.raises(ValueError, match="two shapes are called 'circle'"):
        shapes.register("circle")(lambda: "mine")
    assert shapes.build("circle") == "circle 1.0"


def test_two_packages_cannot_share_a_name(shapes: Registry[str], tmp_path: Path) -> None:
    for lab in ("lab-a", "lab-b"):
        install(tmp_path, lab, "[wsi_pipeline.shapes]\nsquare = lab_square:square\n", lab_square=SQUARE)
    line = "shape 'square' is provided by lab-a 1.2 and lab-b 1.2; uninstall one of them"
    with pytest.raises(ConfigError, match=line):
        shapes.build("square")
    assert shapes.listing()[1] == [line]
    assert shapes.names() == ["circle", "polygon:"]


def test_each_kind_of_plugin_has_its_group() -> None:
    groups = [registry.group for registry in (encoders, models, explainers, readers, detectors)]
    assert groups == [f"wsi_pipeline.{kind}" for kind in ("encoders", "models", "explainers", "readers", "detectors")]


def test_wsi_list_shows_plugins_with_their_package(tmp_path: Path) -> None:
    points = (
        "[wsi_pipeline.detectors]\ndark = lab_tissue:dark\nbroken = lab_nothing:here\notsu = lab_tissue:dark\n"
        "[wsi_pipeline.models]\nlast = lab_tissue:dark\n"
    )
    source = (
        "def dark(*, below=128):\n    'Pixels darker than a fixed value.'\n"
        "    return lambda rgb, mpp: rgb.mean(axis=2) < below\n"
    )
    install(tmp_path, "lab-tissue", points, lab_tissue=source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "wsi_pipeline", "list", "detectors"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    shown = " ".join(done.stdout.split())
    assert "Pixels darker than a fixed value." in shown
    assert "package: lab-tissue 1.2" in shown
    assert "'broken' of lab-tissue 1.2 cannot be loaded" in shown
    assert "'otsu' of lab-tissue 1.2 is not used" in shown
    assert "Traceback" not in done.stdout + done.stderr
