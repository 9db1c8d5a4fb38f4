"""Ctrl-C ends a run within seconds, with its workers, whatever they are doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

# A C mutex that is locked twice hangs for ever, and no signal gets through to Python meanwhile.
RUN = """
import ctypes, sys
from pathlib import Path
from wsi_pipeline.config import EngineConfig
from wsi_pipeline.engine import Engine, Job, stoppable
from wsi_pipeline.artifacts import Provenance, atomic_path

def hangs(*, output, provenance):
    with atomic_path(output) as beside:
        beside.write_text("half")
        (output.parent / f"{output.name}.begun").touch()
        mutex = ctypes.create_string_buffer(256)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    return 1

if __name__ == "__main__":
    out = Path(sys.argv[1])
    jobs = [Job(name, out / "tile" / name, Provenance.of("key", "tile"), hangs) for name in "ab"]
    try:
        with stoppable(grace_s=1), Engine(EngineConfig(kind=sys.argv[2], workers=2), out) as engine:
            engine.run("tile", jobs)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("kind", "begun"), [("serial", 1), ("local", 2)])
def test_a_run_that_hangs_in_native_code_is_stopped(
    tmp_path: Path, kind: str, begun: int, number: signal.Signals
) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(tmp_path / "run"), kind]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(list((tmp_path / "run").rglob("*.begun"))) < begun:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)  # from the note that it begins to the hang itself
        workers, at = psutil.Process(process.pid).children(recursive=True), time.monotonic()
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert time.monotonic() - at < 10
    assert "Traceback" not in stderr
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    if kind == "local":
        assert list((tmp_path / "run").rglob(".writing-*")) == []
        assert not (tmp_path / "run" / ".claims").exists()
    else:
        assert "stopped; finished work is kept" in stderr
    assert list((tmp_path / "run" / "tile").glob("[ab]")) == []
