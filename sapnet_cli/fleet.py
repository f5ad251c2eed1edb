"""A batch over a cluster: Ray Data deals the jobs out to workers, each of which runs the pipeline on its share."""

from __future__ import annotations

import logging
import math
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.errors import SapnetError, UsageError
from sapnet_cli.hub import locate_weights
from sapnet_cli.imaging.jobs import Job
from sapnet_cli.model.weights import read_weights
from sapnet_cli.pipeline import FileOptions, Record, run_jobs

JOBS_AT_ONCE = 8
"""What a worker is given in one piece: enough to decode and encode beside computing, few enough to share evenly."""

QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray's own warnings, which users can do nothing about, and a default to come that it would announce."""

KNOCK_SECONDS = 10

CPUS_PER_WORKER = 4
"""Where there is no GPU: a forward gains little from more."""


def run_jobs_on_ray(
    jobs: Sequence[Job],
    weights: str,
    config: EngineConfig,
    options: FileOptions,
    workers: int | None,
    report: Callable[[float], None],
) -> Iterator[Record]:
    """Derains files on a Ray cluster: that of the environment's RAY_ADDRESS, or one of this machine alone.

    Every worker must reach the files by the same names: URLs, or a folder that all machines share. Records come as the
    workers finish. What a worker had when it died is done again by another, which is safe: outputs are whole or not
    there.

    Args:
        jobs: what to do.
        weights: a registered name, or a path that each worker finds.
        config: how each worker runs them.
        options: how files are read and written.
        workers: how many; None for one a GPU, or one for every four CPU cores.
        report: is told how many pictures are done.

    Raises:
        CheckpointError: the weights are missing, damaged or foreign.
        UsageError: Ray is not installed, the configuration makes no sense, or there is nothing that so many workers
            could run on.
        SapnetError: the cluster cannot be reached, or fails.
    """
    if config.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {config.device}: Ray gives each worker its GPU; leave it out, or use auto or cpu")
    Engine(read_weights(locate_weights(weights)), replace(config, device="cpu"))  # fails here, not on every machine
    weights = str(Path(weights).absolute()) if Path(weights).is_file() else weights
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("--engine ray needs a package that is not here: pip install 'sapnet-cli[ray]'") from error
    ours = not ray.is_initialized()
    try:
        if ours:
            _knock(os.environ.get("RAY_ADDRESS", ""))
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        for done, record in enumerate(_run(jobs, weights, config, options, workers), 1):
            report(done)
            yield record
    except (ray.exceptions.RayError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise SapnetError(f"the Ray cluster failed: {reason}") from error
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises `OSError` where nobody answers, which Ray itself takes minutes to say."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
        except OSError as error:
            raise OSError(f"nothing answers at RAY_ADDRESS {address} ({error})") from error


def _run(
    jobs: Sequence[Job], weights: str, config: EngineConfig, options: FileOptions, workers: int | None
) -> Iterator[Record]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    on_gpus = gpus > 0 and config.device != "cpu"
    workers = min(workers or (gpus if on_gpus else max(1, cpus // CPUS_PER_WORKER)), max(1, len(jobs)))
    if workers > (gpus if on_gpus else cpus):
        have = f"{gpus} GPUs" if on_gpus else f"{cpus} CPU cores"
        raise UsageError(f"--workers {workers}: the cluster has {have}")
    threads = max(1, cpus // workers)
    pieces = max(workers, math.ceil(len(jobs) / JOBS_AT_ONCE))
    items = [{"job": pickle.dumps((index, _absolute(job)))} for index, job in enumerate(jobs)]
    records = ray.data.from_items(items, override_num_blocks=pieces).map_batches(
        _Worker,
        fn_constructor_args=(weights, config, options, None if on_gpus else threads),
        batch_size=JOBS_AT_ONCE,
        concurrency=workers,
        num_gpus=1 if on_gpus else None,
        num_cpus=None if on_gpus else threads,
    )
    for row in records.iter_rows():
        index, record = pickle.loads(row["record"])  # noqa: S301  # from our own workers
        yield replace(record, job=jobs[index])


def _absolute(job: Job) -> Job:
    """Workers may have a working folder of their own."""
    paths = {name: getattr(job, name) for name in ("source", "target", "compare")}
    return replace(job, **{name: path and path.absolute() for name, path in paths.items()})


class _Worker:
    """Lives on one machine of the cluster and keeps its engine from piece to piece."""

    def __init__(self, weights: str, config: EngineConfig, options: FileOptions, threads: int | None) -> None:
        from sapnet_cli.engine.hardware import prepare_process
        from sapnet_cli.imaging.read import prepare_decoders

        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # what computes is loaded after this
        prepare_decoders()
        prepare_process()
        self._engine, self._options = Engine(read_weights(locate_weights(weights)), config), options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        indices, jobs = zip(*(pickle.loads(job) for job in batch["job"]))  # noqa: S301
        records = run_jobs(jobs, [self._engine], self._options, lambda done: None)
        return {"record": [pickle.dumps(each) for each in zip(indices, records)]}
