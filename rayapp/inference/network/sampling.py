"""Network inputs and probabilities of MONAI transform pipelines, from which uncertainty is sampled.

`rayapp.active_learning.uncertainty` draws the samples. Pure functions, thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayapp.errors import ModelBroken
from rayapp.geometry import spacing
from rayapp.imaging.volume import Grid, Volume, painting_order
from rayapp.inference.arrays import Floats, Labels, Shape
from rayapp.inference.network.monai_transforms import Data, TransformPipeline

BODY_QUANTILES = (0.01, 0.99)
"""Quantiles of an image's intensities between which the body lies."""
MAX_SAMPLED = 1 << 20
"""Largest number of voxels from which the quantiles are estimated."""


@dataclass(frozen=True, kw_only=True)
class TransformedImage:
    """An image after a pipeline's transforms, without prompts.

    Attributes:
        pipeline: The pipeline.
        data: The pipeline's dictionary.
        source: The source grid.
        image: The network's input (C, …), float32, on the network's device.
    """

    pipeline: TransformPipeline
    data: Data
    source: Grid
    image: Tensor

    @property
    def extent(self) -> Shape:
        """Voxels that show the image: all, since padding by transforms cannot be told from the image."""
        i, j, k = self.image.shape[1:]
        return i, j, k

    @property
    def body(self) -> tuple[float, float]:
        """Midpoint and half-width of the range in which most intensities lie."""
        flat = self.image.flatten()
        sampled = flat[:: max(1, flat.numel() // MAX_SAMPLED)]
        quantiles = torch.tensor(BODY_QUANTILES, device=sampled.device)
        low, high = torch.quantile(sampled[:MAX_SAMPLED], quantiles).tolist()
        return (low + high) / 2, max((high - low) / 2, 1e-6)

    def levels(self, field: Floats) -> Labels:
        """A field of values from 0 to 1 resampled to the source grid, quantised to 8 bits.

        Args:
            field: Values on the grid of `image`.

        Returns:
            Shape (I, J, K), 255 for 1; 0 where the network's input does not reach.
        """
        restored = self.pipeline.on_source(self.data, torch.from_numpy(field), self.source)
        return np.asfortranarray(np.rint(np.clip(np.nan_to_num(restored), 0, 1) * 255).astype(np.uint8))

    def millilitres(self, volume: Volume) -> float:  # noqa: ARG002
        """Volume of one voxel of `image` in ml."""
        return float(np.prod(spacing(self.data[self.pipeline.image].affine.numpy()))) / 1000


def probabilities(logits: Tensor, structures: int, *, sigmoid: bool) -> Tensor:
    """Class probabilities from a network's logits.

    Softmax over 1 + L channels; or, for networks with overlapping structures, the sigmoid of each of the last L
    channels. Overlapping structures are painted smaller over larger: with one threshold for all structures, drawn
    uniformly from 0 to 1, a structure's probability is that of the voxel being in it and in none painted over it. At a
    threshold of one half this gives the label map.

    Args:
        logits: Shape (N, C, …).
        structures: Number L of structures.
        sigmoid: Whether structures may overlap.

    Returns:
        Shape (N, 1 + L, …), background first.

    Raises:
        ModelBroken: If there are fewer channels than structures.
    """
    if logits.shape[1] < structures:
        raise ModelBroken(f"its network has {logits.shape[1]} output channels for {structures} structures")
    if logits.shape[1] > structures and not sigmoid:
        return torch.softmax(logits[:, : structures + 1], dim=1)
    return torch.stack([_exclusive(image) for image in torch.sigmoid(logits[:, -structures:])])


def _exclusive(inside: Tensor) -> Tensor:
    """Probabilities (1 + L, …) of exclusive classes from those (L, …) of overlapping structures."""
    exclusive = inside.new_zeros(1 + len(inside), *inside.shape[1:])
    covered = torch.zeros_like(inside[0])
    for index in painting_order(inside.flatten(1).sum(dim=1).tolist())[::-1]:
        exclusive[1 + index] = (inside[index] - covered).clamp_(min=0)
        covered = torch.maximum(covered, inside[index])
    exclusive[0] = 1 - covered
    return exclusive
