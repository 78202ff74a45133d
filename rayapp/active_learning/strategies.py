"""Strategies: which image an annotator gets next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayapp.datastore.protocol import Datastore, Order
from rayapp.protocol import FINAL, checked_name


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The image chosen, and what the reply should say besides."""

    image_id: str
    extras: Mapping[str, Any] = field(default_factory=dict)


class Strategy(Protocol):
    """Chooses among the images that lack a label under the request's `label_tag` (default `final`)."""

    @property
    def description(self) -> str:
        """What `/info/` says of it."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        """The next image; None when nothing is left."""


@dataclass(frozen=True)
class _Ordered:
    """A strategy that the store answers by itself, so that it costs the same at 100 and at 100,000 images."""

    description: str
    order: Order

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        tag = checked_name(str(request.get("label_tag") or FINAL), "label_tag")
        ids = datastore.unlabeled(tag=tag, order=self.order, limit=1)
        return Pick(image_id=ids[0]) if ids else None


class First(_Ordered):
    """The paper's sequence: unlabelled images in the order of their ids."""

    def __init__(self) -> None:
        super().__init__("First unlabelled image, in the order of the names", "first")


class Random(_Ordered):
    """Unlabelled images at random, the longer ago one was handed out the likelier."""

    def __init__(self) -> None:
        super().__init__("Random unlabelled image, those not seen for long more often", "age")
