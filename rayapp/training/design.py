"""Design: what a network sees and is, and how a training goes about it. Pure, but for what workers tell each other."""

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
from rayapp.planner import Proposal, Survey
from rayapp.training.train_task import Host

GRID = ("spacing", "roi_size", "network")
"""What weights are bound to, in a card and in a request."""
FAR = 2.0
"""Times as coarse or as fine as the data's voxels, beyond which a version's are given up."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The part of a card that must stand before training: as `SegmentationTask` takes it.

    `spacing` in mm and `roi_size` in voxels, along R, A, S; along the plane's two axes for networks of slices. One
    number for the spacing is the same along all. `channels` are those of an image, without guidance. `plan` is how the
    training goes about it (`train_batch_size`, and `cache` in MiB, where the options leave them open) and why the
    design is as it is: plain JSON, for the record.
    """

    labels: Mapping[str, int]
    spacing: float | tuple[float, ...]
    roi_size: tuple[int, ...]
    network: Mapping[str, Any]
    channels: int
    overlap: float = OVERLAP
    windows: int = 1
    precision: str = "bfloat16"
    plan: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, card: Mapping[str, Any], *, guidance: int) -> Self:
        """As a card states it; `guidance` is how many of the network's channels are no image's."""
        return cls(
            labels=card["labels"],
            spacing=spacing_of(card["spacing"]),
            roi_size=tuple(int(n) for n in card["roi_size"]),
            network=card["network"],
            channels=int(card["network"]["in_channels"]) - guidance,
            overlap=float(card.get("overlap", OVERLAP)),
            windows=int(card.get("windows", 1)),
            precision=card.get("precision", "bfloat16"),
            plan=card.get("plan", {}),
        )

    @classmethod
    def proposed(cls, proposal: Proposal, survey: Survey, *, labels: Mapping[str, int]) -> Self:
        """As the planner proposes."""
        spent = ("forward_memory", "step_memory", "forward_seconds", "step_seconds")
        return cls(
            labels=labels,
            spacing=proposal.spacing,
            roi_size=proposal.roi_size,
            network=proposal.network,
            channels=survey.channels,
            overlap=proposal.overlap,
            windows=proposal.windows,
            precision=proposal.precision,
            plan={
                "train_batch_size": proposal.train_batch_size,
                "cache": -(-proposal.cache >> 20),
                "why": dict(proposal.why),
                "foretold": {name: getattr(proposal, name) for name in spent},
                "survey": json.loads(json.dumps(asdict(survey))),
            },
        )

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the network's grids are multiples of."""
        return divisor_of(self.network)

    def card(self) -> dict[str, Any]:
        """Its part of a card."""
        return {
            "labels": dict(self.labels),
            "network": dict(self.network),
            "spacing": list(self.spacing) if isinstance(self.spacing, tuple) else self.spacing,
            "roi_size": list(self.roi_size),
            "overlap": self.overlap,
            "windows": self.windows,
            "precision": self.precision,
            "plan": dict(self.plan),
        }

    def objection(self, card: Mapping[str, Any], *, fixed: Iterable[str]) -> str | None:
        """Why a version with this card is not trained on where this design suits the data; None if it may be.

        `fixed` names what somebody asked for and so has to be as it is here.
        """
        mine, its = self.card(), card
        for name, what in (("in_channels", "channels"), ("spatial_dims", "dimensions")):
            if its["network"].get(name) != self.network.get(name):
                return f"the images have another number of {what}"
        for name in fixed:
            if not _alike(mine[name], its[name]):
                return f"another {name} was asked for"
        own = np.array(its["spacing"], dtype=float)
        if not (own > 0).all() or np.abs(np.log(own / np.array(self.spacing))).max() > np.log(FAR):
            return f"its voxels of {its['spacing']} mm are far from the data's, {mine['spacing']} mm"
        return None


def spacing_of(stated: Any) -> float | tuple[float, ...]:
    """A number, or a list of them as tuple. Raises TypeError, ValueError."""
    return tuple(float(mm) for mm in stated) if isinstance(stated, (list, tuple)) else float(stated)


def agreed(host: Host, decide: Callable[[], Design], *, guidance: int) -> Design:
    """What rank 0 decides, in every worker: machines and clocks differ. Raises in all of them the BadRequest that
    `decide` raises in one."""
    if host.world_size == 1:
        return decide()
    said = b""
    if host.rank == 0:
        try:
            said = json.dumps({"design": decide().card()}).encode()
        except BadRequest as error:
            said = json.dumps({"refused": error.detail}).encode()
    size = torch.tensor([len(said)], device=host.device)
    distributed.broadcast(size, src=0)
    text = torch.tensor(list(said) or [0] * int(size), dtype=torch.uint8, device=host.device)
    distributed.broadcast(text, src=0)
    heard = json.loads(bytes(text.cpu().tolist()))
    if "refused" in heard:
        raise BadRequest(heard["refused"])
    return Design.of(heard["design"], guidance=guidance)


def _alike(one: Any, other: Any) -> bool:
    """Whether two cards say the same, numbers to a thousandth."""
    if isinstance(one, (int, float, Sequence)) and not isinstance(one, str):
        try:
            return bool(np.allclose(np.array(one, dtype=float), np.array(other, dtype=float), rtol=1e-3))
        except (TypeError, ValueError):
            return False
    return bool(one == other)
