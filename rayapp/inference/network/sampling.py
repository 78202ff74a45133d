"""Seen: an image as a model of MONAI transforms takes it when nobody has pointed at anything, and what its answers are
as probabilities: for those who sample them (`rayapp.active_learning.uncertainty`). Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayapp.errors import ModelBroken
from rayapp.geometry import spacing
from rayapp.imaging.volume import Grid, Volume, from_below
from rayapp.inference.network.monai_transforms import Data, Labels, TransformPipeline
from rayapp.inference.network.network_grid import Floats

MOST = (0.01, 0.99)
"""Quantiles of an image's intensities between which its body lies."""
SAMPLED = 1 << 20
"""Voxels, at most, that the quantiles are taken of."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One image after a pipeline's steps; `image` is its first `channels`, float32, on the network's device."""

    pipeline: TransformPipeline
    data: Data
    source: Grid
    image: Tensor

    @property
    def extent(self) -> tuple[int, int, int]:
        """All of it: what transforms padded is told from the image by nobody."""
        i, j, k = self.image.shape[1:]
        return i, j, k

    @property
    def body(self) -> tuple[float, float]:
        """The middle and half the range of most intensities."""
        flat = self.image.flatten()
        some = flat[:: max(1, flat.numel() // SAMPLED)]
        low, high = torch.quantile(some[:SAMPLED], torch.tensor(MOST, device=some.device)).tolist()
        return (low + high) / 2, max((high - low) / 2, 1e-6)

    def levels(self, field: Floats) -> Labels:
        """A field from 0 to 1 on the image's grid, on the source's (I, J, K): 255 for 1, 0 where nothing was seen."""
        placed = self.pipeline.on_source(self.data, torch.from_numpy(field), self.source)
        return np.asfortranarray(np.rint(np.clip(np.nan_to_num(placed), 0, 1) * 255).astype(np.uint8))

    def millilitres(self, volume: Volume) -> float:  # noqa: ARG002
        """Of one of its voxels."""
        return float(np.prod(spacing(self.data[self.pipeline.image].affine.numpy()))) / 1000


def probabilities(logits: Tensor, structures: int, *, sigmoid: bool) -> Tensor:
    """(N, 1 + L, …), background first, from a network's answer (N, C, …) for L structures.

    By softmax over 1 + L channels; or by the sigmoid of each of the last L, whose structures may lie within each other.
    Then a voxel is as likely of a structure as a threshold, the same for all and equally likely anywhere between 0 and
    1, puts it into that structure and none on top of it: at one half, that is the label map.

    Raises ModelBroken if there are more structures than channels.
    """
    if logits.shape[1] < structures:
        raise ModelBroken(f"its network puts out {logits.shape[1]} channels for {structures} structures")
    if logits.shape[1] > structures and not sigmoid:
        return torch.softmax(logits[:, : structures + 1], dim=1)
    return torch.stack([_stacked(each) for each in torch.sigmoid(logits[:, -structures:])])


def _stacked(inside: Tensor) -> Tensor:
    answer = inside.new_zeros(1 + len(inside), *inside.shape[1:])
    above = torch.zeros_like(inside[0])
    for value in from_below(inside.flatten(1).sum(dim=1).tolist())[::-1]:
        answer[1 + value] = (inside[value] - above).clamp_(min=0)
        above = torch.maximum(above, inside[value])
    answer[0] = 1 - above
    return answer
