"""What several tests share: where real data may lie, and one quiet environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Small tensors are slower on several threads, and threads that wait for work take the cores from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and bags; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("WSI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set WSI_TEST_DATA")
    return folder
