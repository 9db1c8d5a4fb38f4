"""One file adds one plug-in; a wrong name or option gets one line that lists the right ones."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.registry import Registry


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


def test_a_module_that_cannot_be_imported_is_one_line(shapes: Registry[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"'nowhere\.at_all:build' cannot be imported"):
        shapes.build("nowhere.at_all:build")


def test_a_wrong_option_lists_the_right_ones(shapes: Registry[str]) -> None:
    with pytest.raises(ConfigError, match="shape 'circle' has no option 'diameter'; it takes: radius"):
        shapes.build("circle", diameter=2)
