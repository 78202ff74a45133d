"""Sliding-window inference: a network with a fixed field of view applied to images of any size.

Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from rayapp.inference.network.normalisation import PADDING

OVERLAP = 0.25
"""Overlap of neighbouring windows if a model card states none."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Sliding windows of a network.

    Attributes:
        roi_size: The window's size in voxels along each of the network's axes.
        overlap: Overlap of neighbouring windows, as a share of the window's size.
        batch_size: Number of windows in one forward pass.
    """

    roi_size: tuple[int, ...]
    overlap: float = OVERLAP
    batch_size: int = 1

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Self:
        """The windows that a model card states.

        Raises:
            KeyError: If the card has no `roi_size`.
        """
        return cls(
            roi_size=tuple(int(n) for n in card["roi_size"]),
            overlap=float(card.get("overlap", OVERLAP)),
            batch_size=int(card.get("windows", 1)),
        )

    def run(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Apply a network to whole images: in one forward pass if they fit into a window, else window by window.

        Windows are blended with Gaussian weights. Along an axis on which the image is smaller than the window, they are
        as large as the image, as in training.

        Args:
            network: Maps (N, C, …) to logits (N, classes, …).
            images: Normalised images, (N, C, …).

        Returns:
            Logits (N, classes, …) of the images' shape.
        """
        roi_size = [min(n, window) for n, window in zip(images.shape[2:], self.roi_size, strict=True)]
        if roi_size == list(images.shape[2:]):
            return network(images)
        from monai.inferers import SlidingWindowInferer  # slow to import and rarely needed

        inferer = SlidingWindowInferer(
            roi_size, sw_batch_size=self.batch_size, overlap=self.overlap, mode="gaussian", cval=PADDING
        )
        logits: Tensor = inferer(images, network)
        return logits
