"""The config section ``engine``: where the work runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Count, Options, Positive, Section, runtime


class EngineConfig(Section):
    """Where the work runs. Never changes a result."""

    kind: Literal["serial", "local", "cluster"] = runtime(
        "serial", "serial; local: worker processes; cluster: a Dask scheduler, or a batch queue"
    )
    workers: Annotated[int, Field(ge=0)] = runtime(
        0, "local: worker processes, 0: one per GPU and one per cores_per_worker cores; queue: its jobs, 0: one"
    )
    cores_per_worker: Count = runtime(2, "local: cores of a worker process that has no GPU")
    address: str | None = runtime(None, "cluster: tcp://host:port of the Dask scheduler")
    queue: Literal["slurm", "pbs", "sge"] | None = runtime(
        None, "cluster: start the workers as jobs of this batch system (extra hpc)"
    )
    queue_options: Options = runtime(
        {}, "of dask-jobqueue: {cores: 8, memory: 32GB, walltime: '8:00:00', queue: gpu, job_extra_directives: [...]}"
    )
    gpu: bool | None = runtime(
        None,
        "cluster: run stages with a device on workers that declare the Dask resource GPU (workers of queue then do); "
        "default: if any worker declares it",
    )
    retries: Annotated[int, Field(ge=0)] = runtime(2, "how often a slide is tried again whose worker died")
    slide_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = runtime(
        0, "time limit in seconds for one slide in one stage, after which it has failed; 0: none; training has none"
    )
    claim_timeout_s: Positive = runtime(
        60.0, "a slide claimed by another run is taken over when that run has sent no heartbeat for this many seconds"
    )
