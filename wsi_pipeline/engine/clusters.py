"""Dask, started as the config says: worker processes here, a scheduler elsewhere, or jobs of a batch system."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig
from ..errors import EngineError
from .gpus import gpus
from .jobs import cores, one_line

if TYPE_CHECKING:
    from distributed import Client, Scheduler

LOST_S = 300  # no local worker for so long: none is to be had any more
GPU = "GPU"  # the Dask resource that stages with a device ask for
_OF_CLUSTER = {"silence_logs", "scheduler_options", "shared_temp_directory", "security", "protocol"}  # and not of a job
_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}


@dataclass(frozen=True)
class WorkerPlan:
    """One local worker process: its share of the cores, and its GPU if it has one."""

    cores: int
    gpu: str | None = None  # for CUDA_VISIBLE_DEVICES; empty: none of those here; None: that is not looked at


def plan_workers(config: EngineConfig, available: int, devices: Sequence[str]) -> list[WorkerPlan]:
    """One process a GPU, and processes without one for the stages that need none. ``available``: cores.

    Stages follow each other, so a process with a GPU may use its share of all cores, and the others all of them too.
    A serial run that has a time limit does its jobs in one process, which has everything.
    """
    if config.kind == "serial":
        return [WorkerPlan(available)]
    number = config.workers or max(1, len(devices), available // config.cores_per_worker)
    with_gpu = [WorkerPlan(max(1, available // len(devices[:number])), gpu) for gpu in devices[:number]]
    without = WorkerPlan(max(1, available // number), "" if devices else None)
    return [*with_gpu, *[without] * (number - len(with_gpu))]


def local(config: EngineConfig) -> Client:
    """Fresh interpreters on this machine; nothing listens beyond it."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    plans = plan_workers(config, cores(), gpus(os.environ))
    threads = {"OMP_NUM_THREADS": str(min(plan.cores for plan in plans))}
    settings = {
        "distributed.nanny.pre-spawn-environ": threads,  # read when a library is loaded, so before all else
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.worker-ttl": None,  # a process that is gone is noticed; one that is busy is not lost
    }
    common = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "dashboard": False,
        "memory_limit": 0,
        "silence_logs": logging.CRITICAL,
    }
    workers = {
        number: {"cls": Nanny, "options": {**common, **_worker_options(plan)}} for number, plan in enumerate(plans)
    }
    options = {
        "host": "127.0.0.1",
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",  # any free port; the default one may be another run's
        "allowed_failures": config.retries,
    }
    scheduler = {"cls": Scheduler, "options": options}
    # A nanny starts a worker that died again and again, until the cluster takes the nanny away, by default after 15 s.
    # It looks that up when a worker dies, so it is set for good.
    dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LOST_S}s"})
    for left in reversed(range(config.retries + 1)):  # a process may be killed as it begins, too
        try:
            with dask.config.set(settings), _deaf():
                cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
            return Client(cluster, set_as_default=False)
        except (OSError, RuntimeError) as error:
            if not left:
                raise EngineError(f"the worker processes cannot be started: {one_line(error)}") from error
    raise AssertionError


def given_up(client: Client) -> bool:
    """Whether what ``local`` started has no worker and will have none: its nannies are closed, or taken away."""
    from distributed import Status

    workers = client.cluster.workers if client.cluster is not None else {}
    return all(nanny.status in (Status.closed, Status.failed) for nanny in workers.values())


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes and threads that begin inside hear no Ctrl-C, which a terminal sends to all: the run tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker_options(plan: WorkerPlan) -> dict[str, Any]:
    environment = {"WSI_WORKER_CORES": str(plan.cores), "OMP_NUM_THREADS": str(plan.cores)}
    if plan.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = plan.gpu
    return {"env": environment, "resources": {GPU: 1} if plan.gpu else {}}


def remote(config: EngineConfig) -> Client:
    """The scheduler at ``engine.address``; it is told ``engine.retries``, for all that it schedules."""
    from distributed import Client

    try:
        client = Client(config.address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Dask scheduler answers at {config.address}; start one with `dask scheduler` and workers"
        ) from error
    client.run_on_scheduler(_allow, config.retries)
    return client


def _allow(retries: int, dask_scheduler: Scheduler) -> None:
    dask_scheduler.allowed_failures = retries


def queued(config: EngineConfig, root: Path) -> Client:
    """Workers as jobs of a batch system; they go when the run ends. Their output is in ``logs/`` of the run folder."""
    from distributed import Client

    assert config.queue is not None
    try:
        import dask_jobqueue
    except ModuleNotFoundError as error:
        raise EngineError("engine.queue needs dask-jobqueue; pip install 'wsi-pipeline[hpc]'") from error
    options = queue_options(config, root)
    kind = getattr(dask_jobqueue, _CLASSES[config.queue])
    try:  # one job on trial, as a cluster that cannot be built cannot be thrown away quietly either
        kind.job_cls("tcp://host:1", name="trial", **{k: v for k, v in options.items() if k not in _OF_CLUSTER})
        cluster = kind(**options)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise EngineError(f"engine.queue_options: {one_line(error)}") from error
    number = config.workers or 1
    try:
        for _ in range(number):  # as ``cluster.scale``, which does not say what the queue refuses
            cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(cluster._correct_state)
    except (ValueError, RuntimeError, OSError) as error:
        _close(cluster, 10)
        raise EngineError(f"{config.queue} takes no job: {one_line(error)}") from error
    cluster.adapt(minimum_jobs=number, maximum_jobs=number)  # for one whose time is up, another
    return Client(cluster, set_as_default=False)


def queue_options(config: EngineConfig, root: Path) -> dict[str, Any]:
    """What dask-jobqueue is given: the user's options, one job at a time a process, and its share of the cores."""
    given: Mapping[str, Any] = config.queue_options
    processes = int(given.get("processes", 1))
    share = max(1, int(given.get("cores", 1)) // processes)
    resources = ["--resources", f"{GPU}=1"] if config.gpu else []
    environment = [f"export WSI_WORKER_CORES={share}", f"export OMP_NUM_THREADS={share}"]
    return {
        "log_directory": str(root / "logs"),
        "silence_logs": "critical",
        **given,
        "processes": processes,
        "worker_extra_args": ["--nthreads", "1", *resources, *given.get("worker_extra_args", ())],
        "job_script_prologue": [*environment, *given.get("job_script_prologue", ())],
        "scheduler_options": {
            "dashboard": False,
            "dashboard_address": ":0",
            "allowed_failures": config.retries,
            **given.get("scheduler_options", {}),
        },
    }


def connect(config: EngineConfig, root: Path) -> Client:
    """The workers of this run. Raises ``EngineError`` where there are none to be had."""
    if config.kind != "cluster":
        return local(config)
    if config.address:
        return remote(config)
    if config.queue:
        return queued(config, root)
    raise EngineError(
        "engine.kind is cluster but engine.address is not given, and no engine.queue; "
        "--set engine.address=tcp://host:8786 or --set engine.queue=slurm"
    )


def disconnect(client: Client, at_once: bool) -> None:
    """End what ``connect`` started. ``at_once``: whatever local workers are doing; files appear whole or not at all."""
    cluster = client.cluster
    if at_once and cluster is not None:
        for worker in list(cluster.workers.values()):
            _kill(worker)
    seconds = 2 if at_once else 10
    with contextlib.suppress(OSError, RuntimeError):
        client.close(timeout=seconds)
    if cluster is not None:
        _close(cluster, seconds)


def _kill(worker: Any) -> None:
    """A local worker process, with no word to it: its nanny, told to start no other, is in this process."""
    pid = getattr(worker, "pid", None)
    if pid:
        worker.close_gracefully()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _close(cluster: Any, seconds: float) -> None:
    from distributed import Status

    for worker in cluster._created:
        if hasattr(worker, "job_id"):  # of a queue: it is cancelled, but never says that it is closed
            worker.status = Status.closing
    with contextlib.suppress(OSError, RuntimeError):
        cluster.close(timeout=seconds)
