"""What a newcomer meets first: short, its links lead somewhere, its examples run, and its pins agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wsi_pipeline import __version__

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ("own-model.md", "own-explainer.md", "own-encoder.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(name: str) -> set[str]:
    """Package, version and marker of each line of a lock file."""
    return {line.rstrip(" \\") for line in text_of(name).splitlines() if "==" in line and not line.startswith(" ")}


def test_the_readme_has_at_most_900_words() -> None:
    assert len(text_of("README.md").split()) <= 900


def test_the_links_of_the_readme_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", text_of("README.md"))
    assert targets
    assert [t for t in targets if not (ROOT / t).is_file()] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


def test_what_is_locked_for_running_is_locked_alike_for_development() -> None:
    everything = {re.split(r" ;", pin)[0] for pin in pins("requirements.lock")}
    assert {re.split(r" ;", pin)[0] for pin in pins("requirements-runtime.lock")} <= everything
    assert not any(pin.startswith(("torch==", "torchvision==")) for pin in everything)  # by version, in the Makefile


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-runtime.lock", "Makefile", "Dockerfile", "containers/wsi.def"]
)
def test_no_file_names_a_host(name: str) -> None:
    assert "://" not in text_of(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_how_to_pages_run(name: str) -> None:
    """Each in a process of its own, since they register plug-ins."""
    blocks = re.findall(r"```python\n(.*?)```", text_of(f"docs/howto/{name}"), re.DOTALL)
    assert blocks
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
