"""Windows: a network that sees so much at once, run over images of any size. Pure; safe from any thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from rayapp.inference.network.network_grid import PADDING

OVERLAP = 0.25
"""Of neighbouring windows, where a card does not say."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What the network sees at once, voxels along its axes; the share by which neighbouring windows overlap; and how
    many go through the network together."""

    roi_size: tuple[int, ...]
    overlap: float = OVERLAP
    at_once: int = 1

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Self:
        """As a card states them. Raises KeyError if it lacks `roi_size`."""
        return cls(
            roi_size=tuple(int(n) for n in card["roi_size"]),
            overlap=float(card.get("overlap", OVERLAP)),
            at_once=int(card.get("windows", 1)),
        )

    def run(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Logits (N, classes, …) of normalised images (N, C, …): at once if they are no larger than a window."""
        if all(n <= most for n, most in zip(images.shape[2:], self.roi_size, strict=True)):
            return network(images)
        from monai.inferers import SlidingWindowInferer  # slow to import, and seldom needed

        slide = SlidingWindowInferer(
            self.roi_size, sw_batch_size=self.at_once, overlap=self.overlap, mode="gaussian", cval=PADDING
        )
        logits: Tensor = slide(images, network)
        return logits
