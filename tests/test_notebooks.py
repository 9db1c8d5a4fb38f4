"""The notebooks are committed with their outputs, and give them again when they are executed."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

import wsi_pipeline as wsi

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAIN = FOLDER / "one_slide.ipynb"
LARGEST_KB = 400
MOST_NAMES = 14
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def words(output: Any) -> tuple[str, ...]:
    """What an output consists of: its kinds, and its text without numbers, which differ between machines."""
    data = output.get("data", {})
    text = output.get("text", "") + data.get("text/plain", "")
    return (output.output_type, *sorted(data), " ".join(re.sub(r"[-+]?\d+(\.\d+)?(e[-+]\d+)?", " 0 ", text).split()))


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["comparing_explanations", "one_slide", "trained_model"]


@each
def test_a_notebook_is_committed_executed_small_and_without_traces_of_a_machine(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert any("image/jpeg" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert path.stat().st_size < LARGEST_KB * 1000
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|tmp|root|work|Users|var|opt|usr)/|site-packages|Traceback|Warning", text) == []


def test_the_main_notebook_uses_few_names_all_from_the_top_level() -> None:
    used = set()
    for cell in code_cells(MAIN):
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ImportFrom) or node.module != "wsi_pipeline"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not any(name.startswith("wsi_pipeline.") for name in names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "wsi":
                used.add(node.attr)
    assert used <= set(wsi.__all__)
    assert len(used) <= MOST_NAMES
    assert {"open_slide", "find_tissue", "make_grid", "embed_patches", "predict_bag", "explain_bag"} <= used


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of jupyter's own
@each
def test_a_notebook_gives_its_outputs_again(path: Path) -> None:
    execute = runpy.run_path(str(FOLDER / "execute.py"))["execute"]
    again = [cell for cell in execute(path).cells if cell.cell_type == "code"]
    for cell, before in zip(again, code_cells(path), strict=True):
        assert [words(output) for output in cell.outputs] == [words(output) for output in before.outputs], cell.source
