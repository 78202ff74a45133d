"""The trainer of a run: Ray Train's `TorchTrainer`, whose workers are the run's hosts.

Workers give way to everything else on their machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from filelock import FileLock
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from actors.placement import shares_now
from actors.run import LOCK, STOP, Run
from rayapp.app.app_loader import app_class
from rayapp.errors import BadRequest, RayappError
from rayapp.planner.machine import hardware
from rayapp.planner.shares import Resources
from rayapp.runtime import logs
from rayapp.runtime.priority import pause_between_layers, run_in_idle_time
from rayapp.training.train_task import Progress, TrainResult

logger = logging.getLogger("rayapp.training")

FAILURES = 3
"""Faults of workers that Ray Train makes good within one life of the training actor."""
TOLD_S = 0.5
"""Seconds between two reports of progress."""
KEPT = 2
"""Checkpoints: the newest, and the one before."""


def fit(run: Run) -> TrainResult | RayappError | None:
    """Run the training to its end; the return value of rank 0."""
    logs.configure(run.settings)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    if run.settings.ray_address is None:  # nobody takes this machine away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    trainer = _Trainer(
        work,
        train_loop_config={"run": run},
        scaling_config=scaling(run.request.params, shares_now(run.settings).training, ray.cluster_resources()),
        run_config=RunConfig(
            name=run.checkpoints.name,
            storage_path=str(run.checkpoints.parent),
            failure_config=FailureConfig(max_failures=FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            callbacks=[_Faults(run)],
        ),
    )
    result: TrainResult | RayappError | None = trainer.fit().return_value
    return result


def scaling(params: Mapping[str, Any], worker: Resources, cluster: Resources) -> ScalingConfig:
    """From one worker up to as many as asked for: by default one for each GPU, or one without (its threads use the
    cores).

    Args:
        params: of the training.
        worker: what each worker asks of its node.
        cluster: what all nodes have together.
    """
    gpus = int(cluster.get("GPU", 0)) if worker.get("GPU") else 0
    most = int(params.get("workers") or 0) or max(1, gpus)
    return ScalingConfig(
        num_workers=(1, most) if most > 1 else 1,
        use_gpu=bool(worker.get("GPU")),
        resources_per_worker=dict(worker),
    )


class _Trainer(TorchTrainer):  # type: ignore[misc] # Ray has no types
    """Without the detached actor that frees what a killed controller held: it asks Ray's dashboard, and without one
    it stays for ever. `actors.training` frees it instead."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, PlacementGroupCleanerCallback)]


class _Faults(UserCallback):  # type: ignore[misc]
    """Notes every fault that Ray Train recovers from in the job's record."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Called in the controller."""
        lost = ", ".join(f"{rank} ({type(error).__name__})" for rank, error in sorted(worker_exceptions.items()))
        self._run.jobs.note.remote(self._run.job_id, f"lost worker {lost}")


def work(config: dict[str, Any]) -> TrainResult | RayappError | None:
    """One worker's part of the run."""
    run: Run = config["run"]
    run_in_idle_time()
    share_cores()
    pause_between_layers()
    logs.configure(run.settings)
    host = RayHost(run)
    try:
        app = app_class(run.settings).of(run.settings)
        task = app.trainers.get(run.request.model)
        if task is None:
            raise BadRequest(f"the app has no trainer {run.request.model!r}")
        defaults = {name: value[0] if isinstance(value, list) else value for name, value in task.info.config.items()}
        with host.alone():
            host.began()
            return task.train(replace(run.request, params={**defaults, **run.request.params}), host)
    except RayappError as error:
        # Returned, not raised: what is wrong with the request stays wrong, so it must not be tried again.
        if host.rank == 0:
            return error
        raise
    except Exception as error:
        places = "".join(traceback.format_tb(error.__traceback__))
        logger.error("job %s, worker %d: %s\n%s", run.job_id, host.rank, type(error).__name__, places)
        raise


def share_cores() -> None:
    """Compute on the cores that this node's workers have between them."""
    beside = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(1, hardware().cores // beside))


class RayHost:
    """`rayapp.training.train_task.Host` in a worker of Ray Train."""

    def __init__(self, run: Run) -> None:
        self._run = run
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._stop = run.request.folder / STOP
        self._told = 0.0

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Wait, as rank 0, until no earlier life of this run is left."""
        return FileLock(self._run.request.folder / LOCK) if self.rank == 0 else contextlib.nullcontext()

    def began(self) -> None:
        """Note in the job's record, from rank 0, where the run begins."""
        if self.rank != 0:
            return
        checkpoint = ray.train.get_checkpoint()
        at = checkpoint.get_metadata() if checkpoint else {}
        where = f"goes on from epoch {at['epoch']}, iteration {at['iteration']}," if at else "begins at the start"
        first = "" if at else "; looks at images, labels and machine first"
        self._tell("note", f"{where} on {self.device.type} with {self.world_size} worker(s){first}")

    def resume(self) -> Path | None:
        """See `Host`."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.path)

    def report(self, progress: Progress, *, checkpoint: Path | None = None) -> None:
        """See `Host`."""
        if checkpoint is not None:
            own = ray.train.Checkpoint.from_directory(checkpoint) if self.rank == 0 else None
            if own is not None:
                own.set_metadata(asdict(progress))
            ray.train.report(asdict(progress), checkpoint=own)
        if self.rank == 0 and (checkpoint is not None or time.monotonic() - self._told > TOLD_S):
            self._told = time.monotonic()
            self._tell("progress", progress, durable=checkpoint is not None)

    def stopped(self) -> bool:
        """See `Host`. Rank 0 looks and tells the others."""
        if self.world_size == 1:
            return self._stop.exists()
        stopping = torch.tensor([self.rank == 0 and self._stop.exists()], dtype=torch.uint8, device=self.device)
        torch.distributed.broadcast(stopping, src=0)
        return bool(stopping.item())

    def _tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Without waiting: a jobs actor that is away misses a line, and this run ends with it anyway."""
        getattr(self._run.jobs, method).remote(self._run.job_id, *args, **kwargs)
