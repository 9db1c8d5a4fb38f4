"""Runs some stages like the command ``wsi``, in a process that may be killed. Arguments: CONFIG STAGES [OVERRIDE…]"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from wsi_pipeline.cli.progress import Bars
from wsi_pipeline.config import load_config
from wsi_pipeline.engine import stoppable
from wsi_pipeline.pipeline import run_stages
from wsi_pipeline.project import open_project

if __name__ == "__main__":
    bars = Bars(Console(stderr=True, width=200))
    with stoppable():
        failures = run_stages(
            open_project(load_config(Path(sys.argv[1]), sys.argv[3:])), tuple(sys.argv[2].split(",")), bars
        )
    bars.close()
    sys.exit(bool(failures))
