"""The house keeps its shape: imports flow one way, heavy libraries stay in their rooms, importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsi_pipeline"
ORDER = """
    errors types geometry registry recipes sections config files store foreign project engine
    read tile embed aggregate train predict explain heatmap evaluate view demo studies
    pipeline apply importing tables progress cli __main__
"""
FLOW = ORDER.split()
HOMES = {
    "torch": {"embed", "aggregate", "train", "predict", "explain", "tables"},
    "torchvision": {"embed"},
    "timm": {"embed", "train"},
    "captum": {"explain"},
    "lightning": {"train"},
    "openslide": {"read"},
    "tifffile": {"read", "demo"},
    "h5py": {"files", "store", "foreign"},  # foreign: the files of other programs
    "zarr": {"heatmap", "view"},
    "dask": {"engine", "heatmap"},
    "distributed": {"engine"},
    "dask_jobqueue": {"engine"},
    "sklearn": {"train", "evaluate"},
    "matplotlib": {"evaluate", "view"},
    "skimage": {"tile", "demo"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted absolute name, imported when the module is loaded) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = ["wsi_pipeline", *path.relative_to(PACKAGE).with_suffix("").parts]
    if here[-1] == "__init__":
        here.append("")
    late = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            stem = ".".join(p for p in (base, node.module or "") if p)
            for alias in node.names:
                yield f"{stem}.{alias.name}", id(node) not in late


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_flow_as_the_data_flows(path: Path) -> None:
    if room(path) == "__init__":
        return
    position = FLOW.index(room(path))
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "wsi_pipeline" and len(parts) > 1 and parts[1] in FLOW:
            assert FLOW.index(parts[1]) <= position, f"{path.name} imports {name}, which stands to its right"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    for name, _ in imports(path):
        library = name.split(".")[0]
        assert room(path) in HOMES.get(library, {room(path)}), f"{library} has no home in {room(path)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_importing_does_nothing(path: Path) -> None:
    """The top level of a module defines; it opens, loads, prints and fetches nothing."""
    forbidden = {"open", "print", "read_text", "read_bytes", "urlopen", "manual_seed", "seed", "mkdir", "load"}
    allowed = {"_discover"}
    if path.name == "torchvision_guard.py":
        return  # its one purpose is to act before torchvision is imported
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).rsplit(".", 1)[-1]
                assert called not in forbidden - allowed, f"{path.name}:{node.lineno} calls {called} at import"


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_loads_nothing_heavy() -> None:
    """What makes `wsi --help` answer at once."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom wsi_pipeline.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    heavy = set(HOMES) | {"numpy", "scipy", "pandas", "pydantic", "shapely", "PIL"}
    assert loaded_after(code) & heavy == set()


@pytest.mark.parametrize("stage", ["tile", "heatmap", "evaluate", "view"])
def test_a_stage_without_a_network_starts_without_torch(stage: str) -> None:
    loaded = loaded_after(f"import wsi_pipeline.{stage}.stage, wsi_pipeline.pipeline")
    assert loaded & {"torch", "torchvision", "timm", "lightning"} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_fit_on_a_few_pages(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320


def test_only_the_engine_catches_everything() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                broad = caught in {"everything", "Exception", "BaseException"}
                assert not broad or room(path) == "engine", f"{path.name}:{node.lineno} catches {caught}"


def test_every_room_is_in_the_flow() -> None:
    assert {room(p) for p in MODULES} - {"__init__"} == set(FLOW)
