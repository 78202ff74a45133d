"""Learner: a network in training with its optimiser and schedule, on one worker's device. Used by one thread."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayapp.errors import BadRequest
from rayapp.inference.network.network import supports_bf16
from rayapp.models.networks import build, load_weights
from rayapp.models.store import ModelVersion
from rayapp.training.design import Design
from rayapp.training.feed import Batch
from rayapp.training.metrics import dice
from rayapp.training.partial import taught
from rayapp.training.recipe import Opts, Recipe
from rayapp.training.train_task import Host

CLIP = 5.0
"""Largest norm of the gradient; larger ones are clipped."""


class Learner(Generic[Opts]):
    """The network, and the loss, optimiser and schedule that the recipe chooses.

    The randomness of a step depends only on the seed, the step's number and the worker's rank.
    """

    def __init__(
        self, task: Recipe[Opts], design: Design, options: Opts, host: Host, *, steps: int, timed: bool = False
    ) -> None:
        """Build the network.

        Args:
            task: The recipe.
            design: The network and its grid.
            options: The run's options.
            host: The worker's environment.
            steps: Number of steps of the whole run, which the learning rate schedule spans.
            timed: True for a run of unknown length, whose schedule is moved by `advance` alone.
        """
        self._task = task
        self._options = options
        self._host = host
        self._format = torch.channels_last_3d if len(design.roi_size) == 3 else torch.channels_last
        self._bf16 = design.precision == "bfloat16" and supports_bf16(host.device)
        torch.manual_seed(options.seed)
        self.network = build(design.network).to(host.device)
        self.network = self.network.to(memory_format=self._format)  # type: ignore[call-overload]
        ids = [host.device.index or 0] if host.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(self.network, device_ids=ids) if host.world_size > 1 else None
        self._loss = task.loss()
        self._optimizer = task.optimizer(self.network, options)
        self._steps = steps
        self._timed = timed
        self._scheduler = task.scheduler(self._optimizer, options, steps)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def start_from(self, version: ModelVersion) -> None:
        """Load a version's weights.

        Raises:
            ModelBroken: If they do not fit the network.
        """
        load_weights(self.network, version.weights)

    def step(self, batches: Sequence[Batch], number: int) -> tuple[float, list[float]]:
        """One step of the optimiser.

        Args:
            batches: The batches whose gradients are accumulated.
            number: Number of the step, from 0.

        Returns:
            The loss, and the Dice score of each structure.

        Raises:
            BadRequest: If the loss is no longer finite.
        """
        rank = self._host.rank
        torch.manual_seed((self._options.seed << 32) + (number << 8) + rank)
        rng = np.random.default_rng((self._options.seed, number, rank))
        common = np.random.default_rng((self._options.seed, number))
        self._optimizer.zero_grad(set_to_none=True)
        losses, scores = [], []
        for index, batch in enumerate(batches):
            inputs = self._task.inputs(batch, self.predict, self._options, rng, common=common)
            labels = batch.labels.to(self._host.device)
            self.network.train()
            last = index == len(batches) - 1
            with nullcontext() if self._wrapped is None or last else self._wrapped.no_sync():
                logits = self._forward(self._wrapped or self.network, inputs)
                counted, known = taught(logits, labels, batch.unsought)
                loss = self._loss(counted, known[:, None]) / len(batches)
                torch.autograd.backward(loss)
            losses.append(loss.item())
            with torch.no_grad():
                predicted = logits.argmax(1).to(torch.uint8).cpu().numpy()
            scores.append(dice(predicted, batch.labels.numpy(), logits.shape[1] - 1))
        if not math.isfinite(sum(losses)):
            raise BadRequest(f"the loss is no longer a number at iteration {number + 1}: lower the learning_rate")
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self._optimizer.step()
        if not self._timed:
            self._scheduler.step()
        return sum(losses), mean_of(scores)

    def advance(self, done: float) -> None:
        """Move the learning rate schedule to the fraction `done` of the run, from 0 to 1."""
        while self._scheduler.last_epoch < round(done * self._steps):
            self._scheduler.step()

    def predict(self, images: Tensor) -> Tensor:
        """The network's present logits, float32, without gradient."""
        self.network.eval()
        with torch.no_grad():
            return self._forward(self.network, images)

    def _forward(self, network: nn.Module, images: Tensor) -> Tensor:
        images = images.to(self._host.device).contiguous(memory_format=self._format)
        with torch.autocast(self._host.device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = network(images)
        return logits.float()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's weights on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """The learner's part of a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint. If the number of steps has changed, as with the number of workers, the schedule
        resumes at the same fraction of its length."""
        self.network.load_state_dict(state["network"])
        if state["steps"] == self._steps:
            self._scheduler.load_state_dict(state["scheduler"])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of schedule steps before the optimiser's, made before
                for _ in range(round(state["scheduler"]["last_epoch"] / state["steps"] * self._steps)):
                    self._scheduler.step()
        self._optimizer.load_state_dict(state["optimizer"])


def mean_of(scores: Sequence[Sequence[float]]) -> list[float]:
    """Mean Dice score of each structure over cases, (cases, structures); NaN is ignored."""
    table = np.array(scores, dtype=float)
    counts = (~np.isnan(table)).sum(axis=0)
    return [float(np.nansum(table[:, n]) / count) if count else math.nan for n, count in enumerate(counts)]
