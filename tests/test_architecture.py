"""The package keeps its shape: imports flow one way, heavy libraries stay in their stages, importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsi_pipeline"
ORDER = """
    errors types geometry outcome concordance rng csvtable registry config artifacts store interop project engine
    torchvision_guard device
    read tile embed aggregate train predict explain heatmap evaluate view demo studies
    pipeline apply api run_folder cli __main__
"""
FLOW = ORDER.split()
# To the left of what imports it, and yet not to be imported: what both need belongs to the shared modules.
FORBIDDEN = {("heatmap", "train"), ("predict", "embed"), ("explain", "embed"), ("evaluate", "train")}
HOMES = {
    "torch": {"embed", "aggregate", "train", "predict", "explain", "device", "torchvision_guard", "api", "cli"},
    "torchvision": {"embed"},
    "timm": {"embed", "train"},
    "captum": {"explain"},
    "lightning": {"train"},
    "openslide": {"read"},
    "tifffile": {"read", "demo"},
    "h5py": {"artifacts", "store", "interop"},
    "zarr": {"heatmap", "view"},
    "dask": {"engine"},
    "distributed": {"engine"},
    "dask_jobqueue": {"engine"},
    "sklearn": {"train"},
    "matplotlib": {"evaluate", "view", "api"},
    "pandas": {"api", "run_folder"},
    "skimage": {"tile", "demo"},
}
# A name that several modules share means the same thing in each: the stage itself, bags from feature files, and the
# config section of a stage.
SHARED_NAMES = {"stage", "from_features"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def stage_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = ["wsi_pipeline", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted absolute name, imported when the module is loaded) of every import in a file."""
    tree = tree_of(path)
    here = ["wsi_pipeline", *path.relative_to(PACKAGE).with_suffix("").parts]
    if here[-1] == "__init__":
        here[-1] = ""
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


def test_imports_flow_as_the_data_flows() -> None:
    wrong = []
    for path in MODULES:
        if stage_of(path) == "__init__":
            continue
        here = stage_of(path)
        for name, _ in imports(path):
            parts = name.split(".")
            if parts[0] == "wsi_pipeline" and len(parts) > 1 and parts[1] in FLOW:
                there = parts[1]
                if FLOW.index(there) > FLOW.index(here) or (here, there) in FORBIDDEN:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module_name(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        found = set()
        for name, at_import in imports(path):
            target = name if name in names else name.rpartition(".")[0]
            if at_import and target in names and target != module_name(path):
                found.add(target)
        graph[module_name(path)] = found
    while leaves := {name for name, needed in graph.items() if not needed & graph.keys()}:
        graph = {name: needed for name, needed in graph.items() if name not in leaves}
    assert sorted(graph) == []


def test_heavy_libraries_stay_in_their_stages() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in MODULES
        for name, _ in imports(path)
        if stage_of(path) not in HOMES.get(name.split(".")[0], {stage_of(path)})
    ]
    assert wrong == []


def test_importing_does_nothing() -> None:
    """The top level of a module defines; it opens, loads, prints and fetches nothing."""
    forbidden = {"open", "print", "read_text", "read_bytes", "urlopen", "manual_seed", "seed", "mkdir", "load"}
    wrong = []
    for path in MODULES:
        if path.name == "torchvision_guard.py":
            continue  # its one purpose is to act before torchvision is imported
        for statement in tree_of(path).body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func).rsplit(".", 1)[-1]
                    if called in forbidden:
                        wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} calls {called} at import")
    assert wrong == []


def test_modules_fit_on_a_few_pages() -> None:
    long = [path.name for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 320]
    assert long == []


def test_no_two_modules_share_a_name_that_means_two_things() -> None:
    sections = {path.stem for path in (PACKAGE / "config").glob("*.py")}
    packages = {path.parent.name for path in MODULES if path.name == "__init__.py"}
    names = Counter(path.stem for path in MODULES if path.name != "__init__.py" and path.parent.name != "config")
    twice = {name for name, count in names.items() if count > 1} - SHARED_NAMES
    of_packages = {name for name in names if name in packages}
    of_sections = {name for name in names if name in sections - {"base"}}
    assert (twice, of_packages, of_sections) == (set(), set(), set())


def test_explain_is_tidy() -> None:
    entries = [path for path in (PACKAGE / "explain").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_loads_nothing_heavy() -> None:
    """What makes `wsi --help` answer at once."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom wsi_pipeline.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    heavy = set(HOMES) | {"numpy", "scipy", "pandas", "pydantic", "shapely", "PIL"}
    assert loaded_after(code) & heavy == set()


@pytest.mark.parametrize("stage", ["tile", "heatmap", "evaluate", "view"])
def test_a_stage_without_a_network_starts_without_torch(stage: str) -> None:
    loaded = loaded_after(f"import wsi_pipeline.{stage}.stage, wsi_pipeline.pipeline")
    assert loaded & {"torch", "torchvision", "timm", "lightning"} == set()


def test_only_the_engine_and_the_loading_of_plugins_catch_everything() -> None:
    wrong = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = {ast.unparse(one) for one in ast.walk(node.type)} if node.type else {"Exception"}
                if caught & {"Exception", "BaseException"} and stage_of(path) not in {"engine", "registry"}:
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} catches everything")
    assert wrong == []


def test_every_module_is_in_the_flow() -> None:
    assert {stage_of(p) for p in MODULES} - {"__init__"} == set(FLOW)
