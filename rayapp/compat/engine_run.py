"""A run of MONAI's engines for a ported trainer: what hooks see of it, its way to the host, and its best weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from rayapp.training.train_task import Host, Progress

Weights = dict[str, torch.Tensor]


class Context:
    """The training in progress, as hooks see it."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = {}
        self.run_id = ""
        self.output_dir = self.cache_dir = self.events_dir = ""
        self.datalist: Any = []
        self.train_datalist: Any = []
        self.val_datalist: Any = []
        self.train_batch_size = self.val_batch_size = 1
        self.max_epochs = 1
        self.device: Any = torch.device("cpu")
        self.network: Any = None
        self.optimizer: Any = None
        self.trainer: Any = None
        self.evaluator: Any = None
        self.pretrained = False
        self.multi_gpu = False
        self.local_rank, self.world_size = 0, 1
        self.dataset_type, self.dataloader_type = "CacheDataset", "DataLoader"
        self.tracking: Any = None


class Run:
    """A run's way to its host, and its best weights.

    Args:
        host: Gets progress, and says when to stop.
        parent: Weights to begin with.
        pretrained: Begin with the app's own weights if there is no parent.
        baseline: Weights of the version in production, which are measured too.
    """

    def __init__(self, host: Host, *, parent: Path | None, pretrained: bool, baseline: Path | None) -> None:
        self.host = host
        self.parent, self.pretrained, self.baseline = parent, pretrained, baseline
        self.metric: float | None = None
        self.baseline_metric: float | None = None
        self.weights: Weights | None = None
        self.stopped = False
        self.epochs = 0

    def measure_baseline(self, evaluator: Engine) -> None:
        """Take the metric that the evaluator has just measured as the baseline's."""
        self.baseline_metric = _metric(evaluator)

    def watch(self, context: Context) -> None:
        """Attach to the engines."""
        trainer: Engine = context.trainer
        batches = len(context.trainer.data_loader)

        def stop(engine: Engine) -> None:
            if self.host.stopped():
                self.stopped = True
                engine.terminate()

        def tell(engine: Engine) -> None:
            output: Any = engine.state.output
            output = output[0] if isinstance(output, list) else output
            progress = Progress(
                epoch=engine.state.epoch,
                epochs=context.max_epochs,
                iteration=engine.state.iteration,
                iterations=context.max_epochs * batches,
                loss=float(torch.as_tensor(output["loss"]).mean()),
            )
            self.host.report(progress)

        def keep(engine: Engine) -> None:
            value = _metric(engine)
            if value is not None and (self.metric is None or value > self.metric):
                self.metric, self.weights = value, copied(context.network)

        def end(engine: Engine) -> None:
            self.epochs = engine.state.epoch
            if self.weights is None:
                self.weights = copied(context.network)

        trainer.add_event_handler(Events.ITERATION_STARTED, stop)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, tell)
        trainer.add_event_handler(Events.COMPLETED, end)
        if context.evaluator is not None:
            context.evaluator.add_event_handler(Events.EPOCH_COMPLETED, keep)


def _metric(engine: Engine) -> float | None:
    state: Any = engine.state
    value = state.metrics.get(state.key_metric_name)
    return None if value is None or value != value else float(value)


def copied(network: torch.nn.Module) -> Weights:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
