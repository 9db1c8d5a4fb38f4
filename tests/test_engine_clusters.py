"""Workers: one process per GPU, a share of the cores each, or jobs of a batch system."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import dask
import psutil
import pytest
from test_engine import Watch, good, jobs

from wsi_pipeline.artifacts import Provenance, write_provenance, write_text
from wsi_pipeline.config import EngineConfig
from wsi_pipeline.engine import Engine
from wsi_pipeline.engine.clusters import WorkerPlan, plan_workers, queue_options
from wsi_pipeline.engine.gpus import gpus
from wsi_pipeline.errors import EngineError

pytestmark = pytest.mark.slow

LISTED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d5c)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-77aa)
"""
CUT = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5c)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7ad)
  MIG 3g.20gb     Device  1: (UUID: MIG-1f02)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-77aa)
"""
SBATCH = """#!/bin/sh
cp "$1" {folder}/job.sh
PYTHONPATH={tests}:$PYTHONPATH setsid sh {folder}/job.sh >{folder}/job.log 2>&1 &
echo $! >> {folder}/pids
echo "Submitted batch job $!"
"""
SCANCEL = '#!/bin/sh\necho "$1" >> {folder}/cancelled\nkill -- "-$1"\n'


@pytest.mark.parametrize(
    ("visible", "listed", "expected"),
    [
        (None, "", []),
        (None, LISTED, ["0", "1"]),
        (None, CUT, ["MIG-c7ad", "MIG-1f02", "1"]),
        ("", LISTED, []),
        ("1", LISTED, ["1"]),
        ("0,1, 3", "", ["0", "1", "3"]),
        ("GPU-77aa,MIG-c7ad", LISTED, ["GPU-77aa", "MIG-c7ad"]),
        ("1,-1,0", LISTED, ["1"]),
    ],
)
def test_the_gpus_are_those_that_cuda_would_list(
    tmp_path: Path, visible: str | None, listed: str, expected: list[str]
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus(environ, lambda: listed, tmp_path / "none") == expected


def test_without_nvidia_smi_the_driver_lists_the_gpus(tmp_path: Path) -> None:
    for name in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / name).mkdir()
    assert gpus({}, lambda: "", tmp_path) == ["0", "1"]


def local(**settings: object) -> EngineConfig:
    return EngineConfig.model_validate({"kind": "local", **settings})


def test_without_a_gpu_there_is_one_process_per_two_cores() -> None:
    assert plan_workers(local(), 8, []) == [WorkerPlan(2)] * 4
    assert plan_workers(local(cores_per_worker=4), 8, []) == [WorkerPlan(4)] * 2
    assert plan_workers(local(workers=3), 8, []) == [WorkerPlan(2)] * 3
    assert plan_workers(local(), 1, []) == [WorkerPlan(1)]


def test_every_gpu_has_a_process_and_the_other_processes_share_the_cores() -> None:
    with_gpus, without = [WorkerPlan(8, "0"), WorkerPlan(8, "1")], WorkerPlan(2, "")
    assert plan_workers(local(), 16, ["0", "1"]) == [*with_gpus, *[without] * 6]
    assert plan_workers(local(workers=2), 16, ["0", "1"]) == with_gpus
    assert plan_workers(local(workers=1), 16, ["0", "1"]) == [WorkerPlan(16, "0")]
    assert plan_workers(local(), 2, ["0", "1", "2"]) == [WorkerPlan(1, name) for name in "012"]


def test_a_serial_run_with_a_time_limit_has_one_process_with_all_cores() -> None:
    assert plan_workers(EngineConfig(slide_timeout_s=9), 16, ["0", "1"]) == [WorkerPlan(16)]


def environment(*, output: Path, provenance: Provenance) -> int:
    time.sleep(0.3)  # so that every worker gets a job
    names = ("CUDA_VISIBLE_DEVICES", "WSI_WORKER_CORES", "OMP_NUM_THREADS")
    write_text(output, "/".join(os.environ.get(name, "-") for name in names))
    write_provenance(output, provenance)
    return 1


def environments(out: Path) -> set[str]:
    return {path.read_text() for path in (out / "tile").glob("*.txt")}


def test_jobs_on_a_device_go_to_workers_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("WSI_WORKER_CORES", "8")
    many = dict.fromkeys("abcdefgh", environment)
    with Engine(local(workers=3), tmp_path) as engine:
        engine.run("embed", jobs(tmp_path, "on the GPU", **many), device="auto")
        assert environments(tmp_path) == {"3/4/4", "5/4/4"}
        engine.run("embed", jobs(tmp_path, "on the CPU", **many), device="cpu")
        assert environments(tmp_path) == {"3/4/4", "5/4/4", "/2/2"}
        without = [replace(job, on_device=False) for job in jobs(tmp_path, "no device", **many)]
        engine.run("embed", without, device="auto")
        assert environments(tmp_path) == {"3/4/4", "5/4/4", "/2/2"}, "a job that computes on no device waits for none"


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``sbatch`` and ``scancel`` that run the job here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder, tests=Path(__file__).parent))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return folder


def slurm(**settings: object) -> EngineConfig:
    options = {"cores": 6, "memory": "1GB", "interface": "lo", "queue": "gpu", "job_extra_directives": ["--gres=gpu:1"]}
    return EngineConfig.model_validate({"kind": "cluster", "queue": "slurm", "queue_options": options, **settings})


def test_the_workers_of_a_batch_system_come_and_go_with_the_run(tmp_path: Path, batch_system: Path) -> None:
    with Engine(slurm(gpu=True), tmp_path) as engine:
        engine.run("embed", jobs(tmp_path, "k", a=environment, b=good), device="auto")
        engine.run("tile", jobs(tmp_path, "k", c=good))
    assert (tmp_path / "tile" / "a.txt").read_text().endswith("/6/6"), (
        "all cores of the batch job for one slide at a time"
    )
    assert engine.failures == []
    script = (batch_system / "job.sh").read_text()
    for line in ("#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=6", f"{tmp_path}/logs/"):
        assert line in script
    assert "--resources GPU=1" in script
    (pid,) = (batch_system / "pids").read_text().split()
    assert (batch_system / "cancelled").read_text().split() == [pid]
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_batch_job_that_reached_its_time_limit_is_replaced(tmp_path: Path, batch_system: Path) -> None:
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}), Engine(slurm(), tmp_path) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good))
        (first,) = (batch_system / "pids").read_text().split()
        os.killpg(int(first), signal.SIGKILL)
        engine.run("tile", jobs(tmp_path, "k", b=good))
    assert engine.failures == []
    assert len((batch_system / "pids").read_text().split()) == 2


def test_a_batch_job_that_the_queue_refuses_is_one_line(tmp_path: Path, batch_system: Path) -> None:
    (batch_system / "sbatch").write_text("#!/bin/sh\necho 'Invalid account' >&2\nexit 1\n")
    with (
        Engine(slurm(), tmp_path) as engine,
        pytest.raises(EngineError, match=r"slurm refuses the job: .*Invalid account"),
    ):
        engine.run("tile", jobs(tmp_path, "k", a=good))


def test_unknown_queue_options_are_one_line(tmp_path: Path) -> None:
    config, message = slurm(queue_options={"coers": 6}), r"engine\.queue_options: .*keyword argument 'coers'$"
    with Engine(config, tmp_path) as engine, pytest.raises(EngineError, match=message):
        engine.run("tile", jobs(tmp_path, "k", a=good))


def test_without_dask_jobqueue_one_line_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with Engine(slurm(), tmp_path) as engine, pytest.raises(EngineError, match=r"wsi-pipeline\[hpc\]"):
        engine.run("tile", jobs(tmp_path, "k", a=good))


def test_queue_options_of_the_user_are_kept(tmp_path: Path) -> None:
    given = {"cores": 8, "processes": 4, "memory": "8GB", "log_directory": "/logs", "worker_extra_args": ["--x"]}
    options = queue_options(slurm(queue_options=given, retries=5), tmp_path)
    assert options["log_directory"] == "/logs"
    assert options["worker_extra_args"] == ["--nthreads", "1", "--x"]
    assert options["job_script_prologue"] == ["export WSI_WORKER_CORES=2", "export OMP_NUM_THREADS=2"]
    assert options["scheduler_options"]["allowed_failures"] == 5


def test_while_no_worker_has_started_one_line_reports_it(tmp_path: Path, batch_system: Path) -> None:
    (batch_system / "sbatch").write_text("#!/bin/sh\necho 'Submitted batch job 1'\n")
    (batch_system / "scancel").write_text("#!/bin/sh\n")

    class Impatient(Watch):
        def waiting(self, stage: str, why: str) -> None:
            super().waiting(stage, why)
            raise KeyboardInterrupt

    watch = Impatient()
    with pytest.raises(KeyboardInterrupt), Engine(slurm(), tmp_path, watch) as engine:
        engine.run("tile", jobs(tmp_path, "k", a=good))
    assert watch.reasons == ["no worker has started yet"]
