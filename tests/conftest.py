"""What several tests share: where real data may lie, and one quiet environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Small tensors are slower on several threads, and threads that wait for work take the cores from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and bags; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("WSI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set WSI_TEST_DATA")
    return folder
