"""Student: a promptable network in training, on cases and turns of a simulated annotator.

Each answer during training is also the previous mask of the next turn, so every forward pass is used for learning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayapp.models.networks import load_weights
from rayapp.models.promptable import Promptable, channels_last
from rayapp.training.synthetic.examples import Case
from rayapp.training.synthetic.muon import Muon
from rayapp.training.synthetic.turns import Turn, following, opening

BATCH = {32: 6, 48: 3, 64: 2}
"""Number of views in a step, by their edge in voxels."""
POOL = 240
"""Number of cases with each edge that are kept to draw from."""
MUON_RATE = 13.0
"""Ratio of Muon's learning rate to AdamW's."""
ENOUGH = 12
"""Least number of cases with each edge before the first step."""


@dataclass
class Score:
    """Measurements between two reports: Dice of each answer, errors of the quality head, and losses."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Student:
    """The network in training, its moving average, and the cases and turns that it learns from.

    Args:
        network: arguments of `Promptable`.
        edges: edges of the views in voxels; one is drawn for each step.
        seed: seed of the weights and of all random choices.
        device: device to train on.
        together: True if other processes of `torch.distributed` train the same network and average their gradients.
        judge_alone: train only the quality head, on the answers of the otherwise fixed network.

    Attributes:
        samples, steps: numbers so far.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        edges: Sequence[int],
        *,
        seed: int = 0,
        device: torch.device | None = None,
        together: bool = False,
        judge_alone: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.samples = 0
        self.steps = 0
        self.network = channels_last(Promptable(**network)).to(device)
        self.average = channels_last(Promptable(**network)).to(device)
        self.average.load_state_dict(self.network.state_dict())
        self._optimisers = _optimisers(self.network)
        for name, weights in self.network.named_parameters():
            weights.requires_grad_(not judge_alone or name.startswith("judge."))
        self._edges, self._seed, self._together = list(edges), seed, together
        self._device = device or torch.device("cpu")
        self._random = np.random.default_rng([seed, 0])
        self._pools: dict[int, deque[Case]] = {edge: deque(maxlen=POOL) for edge in self._edges}
        self._waiting: dict[int, deque[Turn]] = {edge: deque(maxlen=64) for edge in self._edges}

    def start_from(self, weights: Path) -> None:
        """Load weights from a safetensors file. Raises ModelBroken."""
        for network in (self.network, self.average):
            load_weights(network, weights)

    def state(self) -> dict[str, Any]:
        """The state from which training can resume, without the cases."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "samples": self.samples,
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; subsequent random choices depend on its progress."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.samples, self.steps = state["samples"], state["steps"]
        self._random = np.random.default_rng([self._seed, self.samples])

    def admit(self, case: Case) -> None:
        """Add a case to learn from; it is dropped after `POOL` later ones."""
        self._pools[case.looks[0].view.edge].append(case)

    @property
    def short(self) -> bool:
        """True if there are too few cases to begin."""
        return min(len(pool) for pool in self._pools.values()) < ENOUGH

    def step(self, rate: float, score: Score) -> None:
        """Draw a batch of turns and take a step.

        Args:
            rate: AdamW's learning rate; Muon's is `MUON_RATE` times as large.
            score: the step's measurements are added to it.
        """
        edge = int(self._random.choice(self._edges))
        turns = [self._next(edge) for _ in range(BATCH[edge])]
        inputs = torch.from_numpy(np.stack([turn.inputs() for turn in turns])).to(self._device)
        truth = torch.from_numpy(np.stack([turn.truth() for turn in turns])).to(self._device)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * (MUON_RATE if isinstance(optimiser, Muon) else 1)
        logits, quality, length = self.network(inputs.contiguous(memory_format=torch.channels_last_3d))
        loss, dice, error = losses(turns, truth, logits, quality, length)
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._together:
            self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        self._follow()
        self.steps += 1
        self.samples += len(turns)
        score.losses.append(float(loss.detach()))
        score.judged.append(error)
        answers = torch.sigmoid(logits.detach()).cpu().numpy()
        for turn, answer, got in zip(turns, answers, dice, strict=True):
            (score.later if turn.number else score.first).append(got)
            after = following(self._random, turn, answer)
            if after is not None:
                self._waiting[edge].append(after)

    def _next(self, edge: int) -> Turn:
        waiting = self._waiting[edge]
        if len(waiting) >= 4 and self._random.random() < 0.5:
            turn = waiting[at := int(self._random.integers(len(waiting)))]
            del waiting[at]
            return turn
        pool = self._pools[edge]
        return opening(self._random, pool[int(self._random.integers(len(pool)))])

    def _average_gradients(self) -> None:
        processes = torch.distributed.get_world_size()
        for parameter in self.network.parameters():
            assert parameter.grad is not None
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= processes

    def _follow(self) -> None:
        decay = min(0.9985, (1 + self.steps) / (20 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)


def _optimisers(network: Promptable) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions that do most of the work; AdamW for the first and last ones, norms and the quality
    head.

    From random weights, Muon reaches a Dice of 0.503 in four minutes, AdamW alone 0.429 (one core, the same 390 cases,
    130 others to validate on).
    """
    inner = nn.ModuleList([network.down, network.lift, network.up])
    matrices = [weights for weights in inner.parameters() if weights.ndim > 1]
    chosen = {id(weights) for weights in matrices}
    rest = [weights for weights in network.parameters() if id(weights) not in chosen]
    return [Muon(matrices), torch.optim.AdamW(rest, weight_decay=1e-4, fused=True)]


def losses(
    turns: Sequence[Turn], truth: Tensor, logits: Tensor, quality: Tensor, length: Tensor
) -> tuple[Tensor, list[float], float]:
    """The loss of a batch, the Dice of each answer in its view, and the mean error of the quality head.

    The quality head predicts the answer's Dice against the whole structure, including its part outside the view;
    patches are not used for it.
    """
    axes = (1, 2, 3)
    probability = torch.sigmoid(logits)
    overlap = (probability * truth).sum(axes)
    soft = 1 - (2 * overlap + 1) / (probability.sum(axes) + truth.sum(axes) + 1)
    with torch.no_grad():
        answer = (probability > 0.5).float()
        shared = (answer * (truth > 0.5)).sum(axes)
        within = (truth > 0.5).sum(axes)
        whole = truth.new_tensor([turn.case.volume / turn.look.view.cell for turn in turns])
        dice = 2 * shared / (answer.sum(axes) + within).clamp(min=1)
        target = 2 * shared / (answer.sum(axes) + torch.maximum(whole, within)).clamp(min=1)
        longest = truth.new_tensor([np.log(turn.case.length / turn.look.view.size) for turn in turns])
        judged = truth.new_tensor([float(turn.look.prompted) for turn in turns])
        error = ((torch.sigmoid(quality) - target).abs() * judged).sum() / judged.sum().clamp(min=1)
    judging = functional.binary_cross_entropy_with_logits(quality, target, reduction="none")
    sizing = functional.smooth_l1_loss(length, longest, reduction="none")
    heads = ((judging + 0.3 * sizing) * judged).mean()
    loss = functional.binary_cross_entropy_with_logits(logits, truth) + soft.mean() + 0.5 * heads
    return loss, [float(value) for value in dice], float(error)
