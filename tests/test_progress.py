"""Progress lines of a run."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from wsi_pipeline.artifacts import Provenance
from wsi_pipeline.cli.progress import Bars
from wsi_pipeline.engine import Job, Result


def test_jobs_of_another_run_count_as_up_to_date_and_waiting_is_reported() -> None:
    printed = io.StringIO()
    bars, job = Bars(Console(file=printed, width=100)), Job("a", Path("a.h5"), Provenance.of("key", "tile"), int)
    bars.started("tile", total=4, current=1)
    bars.advanced("tile", job, Result(units=10))
    bars.waiting("tile", "another run on this folder has claimed [b]; waiting for it")
    bars.advanced("tile", job, Result(done_elsewhere=True))
    bars.advanced("tile", job, Result(error="Timeout", message="not done in 9 s", exit_code=1))
    bars.finished()
    bars.close()
    lines = printed.getvalue().splitlines()
    assert lines[0] == "tile: another run on this folder has claimed [b]; waiting for it"
    assert lines[1] == "tile: a failed: not done in 9 s"
    assert lines[2].startswith("     tile  1 done, 2 up to date, 1 failed in ")
