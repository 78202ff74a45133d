"""Shared by the training examples: rayapp's training cases as a PyTorch dataset, and the result of a training run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from rayapp.models.networks import save_weights
from rayapp.models.store import ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import Cases
from rayapp.training.design import Design
from rayapp.training.feed import batch_of
from rayapp.training.metrics import key_metric
from rayapp.training.options import Options
from rayapp.training.train_task import Pair, TrainRequest, TrainResult


class Examples(Dataset[dict[str, Tensor]]):
    """A random window of each case, augmented if `options.augment` is set.

    Args:
        task: Reads cases and crops windows.
        pairs: Images and their labels.
        design: The network's grid and window.
        options: The run's options.
    """

    def __init__(self, task: BasicTrainTask[Options], pairs: list[Pair], design: Design, options: Options) -> None:
        self._cases = Cases(pairs, lambda pair: task.read(pair, design), capacity=options.cache << 19)
        self._make = task.examples(design, options)
        self._rng = np.random.default_rng(options.seed)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ((image, labels),) = self._make(self._cases[index], self._rng)
        return {"image": image, "label": labels[None].float()}


def stacked(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate examples to a batch, each padded to the largest one's size."""
    batch = batch_of([(example["image"], example["label"][0]) for example in examples])
    return {"image": batch.images, "label": batch.labels[:, None].float()}


def result_of(
    task: BasicTrainTask[Options],
    request: TrainRequest,
    design: Design,
    network: nn.Module,
    *,
    pairs: list[Pair],
    epochs: int,
    iterations: int,
    started: float,
) -> TrainResult:
    """Save a trained network and measure it as it will be served.

    Args:
        task: The task that trained.
        request: The request that was trained for; weights are saved in its folder.
        design: The network's grid, window and architecture.
        network: The trained network.
        pairs: Images and labels to measure Dice on.
        epochs: Number of epochs trained.
        iterations: Number of iterations trained.
        started: Time when the run started, in seconds since the epoch.

    Returns:
        Weights, model card and statistics for the client.
    """
    weights = request.folder / "model.safetensors"
    save_weights(network, weights)
    card: Mapping[str, Any] = {"description": task.description, **design.card()}
    candidate = ModelVersion(name=request.model, version="candidate", weights=weights, card=card)
    metrics = task.tally(task.evaluate(candidate, pairs, task.options)).means()
    metric = key_metric(metrics)
    summary = {"metrics": {}, "key_metric_name": "dice", "best_metric": metric, "best_metric_epoch": epochs}
    stats = {
        "total_epochs": epochs,
        "total_iterations": iterations,
        "epoch": epochs,
        "start_ts": int(started),
        "total_time": f"{time.time() - started:.0f} s",
        "best_metric": metric,
        "train": summary,
        "eval": summary,
    }
    return TrainResult(weights=weights, metric=metric, baseline=None, card={**card, "metrics": metrics}, stats=stats)
