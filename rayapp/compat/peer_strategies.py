"""MONAI Label's strategies, over the datastore that apps see."""

from __future__ import annotations

import random as _random
from typing import Any

from rayapp.compat.peer_tasks import Strategy


class First(Strategy):
    """The first unlabelled image by name."""

    def __init__(self) -> None:
        super().__init__("First unlabelled image by name")

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:  # noqa: ARG002
        images = sorted(datastore.get_unlabeled_images())
        return {"id": images[0]} if images else None


class Random(Strategy):
    """A random unlabelled image."""

    def __init__(self) -> None:
        super().__init__("Random unlabelled image")

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:  # noqa: ARG002
        images = datastore.get_unlabeled_images()
        return {"id": _random.choice(images)} if images else None


class Epistemic(Strategy):
    """The unlabelled image with the highest score that a scoring method left in the images' infos.

    Args:
        key: Name of the score in an image's info.
    """

    def __init__(self, key: str = "epistemic_entropy", **_: Any) -> None:
        super().__init__("Unlabelled image with the highest epistemic uncertainty")
        self.key = key

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images()
        scores = {image: float(datastore.get_image_info(image).get(self.key, 0.0)) for image in images}
        best = max(scores, key=scores.__getitem__, default=None)
        return Random()(request, datastore) if best is None or not scores[best] else {"id": best}
