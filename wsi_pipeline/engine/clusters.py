"""Starts Dask as configured: worker processes here, a scheduler elsewhere, or jobs of a batch system."""

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

LOST_S = 300  # no local worker for so long: none can be started any more
GPU = "GPU"  # the Dask resource that stages with a device request
_CLUSTER_ONLY = {"silence_logs", "scheduler_options", "shared_temp_directory", "security", "protocol"}  # not of a job
_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}


@dataclass(frozen=True)
class WorkerPlan:
    """One local worker process: its share of the cores, and its GPU if it has one."""

    cores: int
    gpu: str | None = None  # value of CUDA_VISIBLE_DEVICES; empty: no GPU; None: the variable is left as it is


def plan_workers(config: EngineConfig, available: int, devices: Sequence[str]) -> list[WorkerPlan]:
    """One process for each GPU, and processes without one for the stages that need none. ``available``: cores.

    Stages run one after the other, so the processes with a GPU may share all cores among them, and so may the others.
    A serial run with a time limit does its jobs in one process, which has all cores and GPUs.
    """
    if config.kind == "serial":
        return [WorkerPlan(available)]
    number = config.workers or max(1, len(devices), available // config.cores_per_worker)
    with_gpu = [WorkerPlan(max(1, available // len(devices[:number])), gpu) for gpu in devices[:number]]
    without = WorkerPlan(max(1, available // number), "" if devices else None)
    return [*with_gpu, *[without] * (number - len(with_gpu))]


def local(config: EngineConfig) -> Client:
    """Fresh interpreters on this machine; nothing listens on the network."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    plans = plan_workers(config, cores(), gpus(os.environ))
    threads = {"OMP_NUM_THREADS": str(min(plan.cores for plan in plans))}
    settings = {
        "distributed.nanny.pre-spawn-environ": threads,  # read when a library is loaded, so it must be set first
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.worker-ttl": None,  # ended processes are noticed anyway, and busy ones are not lost
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
    # A nanny restarts a worker that died again and again, until the cluster removes the nanny, by default after 15 s.
    # The setting is read when a worker dies, so it is not reset afterwards.
    dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LOST_S}s"})
    for left in reversed(range(config.retries + 1)):  # a process may be killed while it starts, too
        try:
            with dask.config.set(settings), _sigint_blocked():
                cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
            return Client(cluster, set_as_default=False)
        except (OSError, RuntimeError) as error:
            if not left:
                raise EngineError(f"the worker processes cannot be started: {one_line(error)}") from error
    raise AssertionError


def given_up(client: Client) -> bool:
    """Whether a cluster of ``local`` has no worker and will have none: its nannies are closed or removed."""
    from distributed import Status

    workers = client.cluster.workers if client.cluster is not None else {}
    return all(nanny.status in (Status.closed, Status.failed) for nanny in workers.values())


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in children started here, as a terminal sends it to all; only the main process handles Ctrl-C."""
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
    """The scheduler at ``engine.address``; ``engine.retries`` is set there, for all that it schedules."""
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
    """Workers as jobs of a batch system, cancelled when the run ends. They log to ``logs/`` of the run folder."""
    from distributed import Client

    assert config.queue is not None
    try:
        import dask_jobqueue
    except ModuleNotFoundError as error:
        raise EngineError("engine.queue needs dask-jobqueue; pip install 'wsi-pipeline[hpc]'") from error
    options = queue_options(config, root)
    kind = getattr(dask_jobqueue, _CLASSES[config.queue])
    try:  # a trial job first: a cluster that fails while it is built prints errors when it is discarded
        kind.job_cls("tcp://host:1", name="trial", **{k: v for k, v in options.items() if k not in _CLUSTER_ONLY})
        cluster = kind(**options)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise EngineError(f"engine.queue_options: {one_line(error)}") from error
    number = config.workers or 1
    try:
        for _ in range(number):  # like ``cluster.scale``, which does not report why the queue refuses a job
            cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(cluster._correct_state)
    except (ValueError, RuntimeError, OSError) as error:
        _close(cluster, 10)
        raise EngineError(f"{config.queue} refuses the job: {one_line(error)}") from error
    cluster.adapt(minimum_jobs=number, maximum_jobs=number)  # a job that reached its time limit is replaced
    return Client(cluster, set_as_default=False)


def queue_options(config: EngineConfig, root: Path) -> dict[str, Any]:
    """The arguments of dask-jobqueue: the user's options, one thread a process, and each process's share of cores."""
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
    """Start or find the workers of this run. Raises ``EngineError`` where that fails."""
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
    """End what ``connect`` started; with ``at_once``, kill local workers: files appear complete or not at all."""
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
    """Kill a local worker process at once; its nanny, in this process, does not start another."""
    pid = getattr(worker, "pid", None)
    if pid:
        worker.close_gracefully()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _close(cluster: Any, seconds: float) -> None:
    from distributed import Status

    for worker in cluster._created:
        if hasattr(worker, "job_id"):  # of a queue: it is cancelled, but never reports that it is closed
            worker.status = Status.closing
    with contextlib.suppress(OSError, RuntimeError):
        cluster.close(timeout=seconds)
