"""Design: a network's architecture, its grid, and the plan of its training. Pure, except for `broadcast_design`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import distributed

from rayapp.errors import BadRequest
from rayapp.inference.network.network import divisor_of
from rayapp.inference.network.sliding_window import OVERLAP
from rayapp.planner.proposal import Proposal
from rayapp.planner.survey import Survey
from rayapp.training.train_task import Host

GRID = ("spacing", "roi_size", "network")
"""The fields of a card that weights depend on; a request may set them too."""
MAX_SPACING_RATIO = 2.0
"""Largest ratio between a version's voxel spacing and the data's at which the version is still fine-tuned."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The part of a version's card that is fixed before training, as `SegmentationTask` reads it.

    Attributes:
        labels: Value by structure name.
        spacing: Voxel spacing of the network's grid in mm, along R, A, S; along the two in-plane axes for networks of
            slices. One number stands for all axes.
        roi_size: Size of the network's input in voxels, along the same axes.
        network: The network's description, as `rayapp.models.networks.build` takes it.
        channels: Image channels, without guidance channels.
        overlap: Overlap of sliding windows, as a share of their size.
        windows: Windows per batch.
        precision: `bfloat16` or `float32`.
        intensities: The range of the images' values that the network sees as -1 to 1; None for percentiles of each.
        plan: Plan of the training, as plain JSON: `train_batch_size`, `cache` in MiB, and the reasons for the design.
    """

    labels: Mapping[str, int]
    spacing: float | tuple[float, ...]
    roi_size: tuple[int, ...]
    network: Mapping[str, Any]
    channels: int
    overlap: float = OVERLAP
    windows: int = 1
    precision: str = "bfloat16"
    intensities: tuple[float, float] | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, card: Mapping[str, Any], *, guidance: int) -> Self:
        """The design in a card.

        Args:
            card: A version's card.
            guidance: Number of guidance channels among the network's input channels.
        """
        return cls(
            labels=card["labels"],
            spacing=spacing_of(card["spacing"]),
            roi_size=tuple(int(n) for n in card["roi_size"]),
            network=card["network"],
            channels=int(card["network"]["in_channels"]) - guidance,
            overlap=float(card.get("overlap", OVERLAP)),
            windows=int(card.get("windows", 1)),
            precision=card.get("precision", "bfloat16"),
            intensities=range_of(card.get("intensities")),
            plan=card.get("plan", {}),
        )

    @classmethod
    def proposed(cls, proposal: Proposal, survey: Survey, *, labels: Mapping[str, int]) -> Self:
        """The design that the planner proposes for surveyed images."""
        costs = ("forward_memory", "step_memory", "forward_seconds", "step_seconds")
        return cls(
            labels=labels,
            spacing=proposal.spacing,
            roi_size=proposal.roi_size,
            network=proposal.network,
            channels=survey.channels,
            overlap=proposal.overlap,
            windows=proposal.windows,
            precision=proposal.precision,
            intensities=proposal.intensities,
            plan={
                "train_batch_size": proposal.train_batch_size,
                "cache": -(-proposal.cache >> 20),
                "why": dict(proposal.why),
                "foretold": {name: getattr(proposal, name) for name in costs},
                "survey": json.loads(json.dumps(asdict(survey))),
            },
        )

    @property
    def divisor(self) -> tuple[int, ...]:
        """The number that the network's input sizes must be multiples of, along each axis."""
        return divisor_of(self.network)

    def card(self) -> dict[str, Any]:
        """The design as part of a version's card; plain JSON."""
        return {
            "labels": dict(self.labels),
            "network": dict(self.network),
            "spacing": list(self.spacing) if isinstance(self.spacing, tuple) else self.spacing,
            "roi_size": list(self.roi_size),
            "overlap": self.overlap,
            "windows": self.windows,
            "precision": self.precision,
            "intensities": None if self.intensities is None else list(self.intensities),
            "plan": dict(self.plan),
        }

    def objection(self, card: Mapping[str, Any], *, fixed: Iterable[str]) -> str | None:
        """The reason not to fine-tune a version on data that this design suits.

        Args:
            card: The version's card.
            fixed: Fields of `GRID` that the request or the app set, and in which the version must agree.

        Returns:
            The reason, or None if the version can be fine-tuned.
        """
        own = self.card()
        for name, what in (("in_channels", "channels"), ("spatial_dims", "dimensions")):
            if card["network"].get(name) != self.network.get(name):
                return f"the images have another number of {what}"
        for name in fixed:
            if not _equal(own[name], card[name]):
                return f"another {name} was requested"
        spacing = np.array(card["spacing"], dtype=float)
        limit = np.log(MAX_SPACING_RATIO)
        if not (spacing > 0).all() or np.abs(np.log(spacing / np.array(self.spacing))).max() > limit:
            return f"its voxels of {card['spacing']} mm are far from the data's, {own['spacing']} mm"
        return None


def range_of(value: Sequence[float] | None) -> tuple[float, float] | None:
    """A range of intensities in the form that cards have it."""
    if value is None:
        return None
    low, high = value
    return float(low), float(high)


def spacing_of(value: Any) -> float | tuple[float, ...]:
    """A spacing in mm from a card or a request: a number, or a list, which becomes a tuple.

    Raises:
        TypeError, ValueError: If it is neither.
    """
    return tuple(float(mm) for mm in value) if isinstance(value, (list, tuple)) else float(value)


def broadcast_design(host: Host, decide: Callable[[], Design], *, guidance: int) -> Design:
    """The design that rank 0 chooses, in every worker; the workers' machines, and so their own choices, may differ.

    Args:
        host: The worker's environment.
        decide: Makes the design; called on rank 0 alone.
        guidance: Number of guidance channels among the network's input channels.

    Raises:
        BadRequest: In every worker, if `decide` raises it.
    """
    if host.world_size == 1:
        return decide()
    message = b""
    if host.rank == 0:
        try:
            message = json.dumps({"design": decide().card()}).encode()
        except BadRequest as error:
            message = json.dumps({"refused": error.detail}).encode()
    size = torch.tensor([len(message)], device=host.device)
    distributed.broadcast(size, src=0)
    text = torch.tensor(list(message) or [0] * int(size), dtype=torch.uint8, device=host.device)
    distributed.broadcast(text, src=0)
    received = json.loads(bytes(text.cpu().tolist()))
    if "refused" in received:
        raise BadRequest(received["refused"])
    return Design.of(received["design"], guidance=guidance)


def _equal(one: Any, other: Any) -> bool:
    """True if two values of cards are equal; numbers may differ by a thousandth."""
    if isinstance(one, (int, float, Sequence)) and not isinstance(one, str):
        try:
            return bool(np.allclose(np.array(one, dtype=float), np.array(other, dtype=float), rtol=1e-3))
        except (TypeError, ValueError):
            return False
    return bool(one == other)
