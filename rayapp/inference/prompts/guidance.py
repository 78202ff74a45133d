"""Guidance channels: clicks encoded as images, identically for training and inference.

Each channel encodes the clicks of one label: 1 at a click, falling with the Euclidean distance to the nearest click of
that label to 0 at `radius`. Distance-based discs guide networks better than Gaussians (autoPET IV challenge,
interactive track); the Gaussian remains available for weights that were trained with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from rayapp.inference.arrays import Floats, Shape

Position = tuple[float, float, float]
"""A position on the network grid in voxels; whole numbers are voxel centres."""
Slices = tuple[slice, ...]

RADIUS = 8.0
"""Distance from a click, in voxels, at which the shipped models' guidance reaches 0."""


class Encoding(StrEnum):
    """Falloff of a channel around a click."""

    DISTANCE = "distance"
    GAUSSIAN = "gaussian"


ENCODING = Encoding.DISTANCE
"""The encoding that training and inference use."""


def encode(
    clicks: Sequence[Sequence[Position]],
    shape: Shape,
    *,
    radius: float = RADIUS,
    encoding: Encoding = ENCODING,
) -> Floats:
    """Encode clicks as guidance, one channel per label.

    Args:
        clicks: For each channel, positions on the network grid.
        shape: Voxels of the network grid.
        radius: Distance from a click, in voxels, at which guidance is 0 (three standard deviations of the Gaussian).
        encoding: Falloff around a click.

    Returns:
        Shape (len(clicks), *shape), values from 0 to 1; a channel without clicks is 0.
    """
    channels = np.zeros((len(clicks), *shape), dtype=np.float32)
    for channel, positions in zip(channels, clicks, strict=True):
        _draw(channel, positions, radius, encoding)
    return channels


class GuidedImage:
    """A network's input: an image's channels followed by guidance channels, in one reused buffer.

    `show` erases only what the previous call drew, so that its cost does not depend on the image's size. The buffer
    is channels-last in memory, the layout that convolutions prefer. Not thread-safe.

    Args:
        image: Normalised image, shape (C, R, A, S).
        guidance_channels: Number of labels that can be clicked.
    """

    def __init__(self, image: Floats, guidance_channels: int) -> None:
        channels, *shape = image.shape
        self._channels = np.moveaxis(np.zeros((*shape, channels + guidance_channels), dtype=np.float32), -1, 0)
        self._channels[:channels] = image
        self._guidance = self._channels[channels:]
        self._drawn: list[tuple[Floats, Slices]] = []

    def show(self, clicks: Sequence[Sequence[Position]]) -> Floats:
        """All channels with these clicks drawn, as `encode` does; a view that is valid until the next call."""
        for channel, box in self._drawn:
            channel[box] = 0
        self._drawn = [
            (channel, box)
            for channel, positions in zip(self._guidance, clicks, strict=True)
            for box in _draw(channel, positions, RADIUS, ENCODING)
        ]
        return self._channels

    @property
    def nbytes(self) -> int:
        """Memory of the buffer in bytes."""
        return self._channels.nbytes


def _draw(channel: Floats, positions: Sequence[Position], radius: float, encoding: Encoding) -> list[Slices]:
    """Draw clicks into a channel; returns the boxes that were drawn in."""
    shape = (channel.shape[0], channel.shape[1], channel.shape[2])
    boxes = []
    for position in positions:
        box, distance = distances(position, shape, radius)
        np.maximum(channel[box], _falloff(distance, radius, encoding), out=channel[box])
        boxes.append(box)
    return boxes


def distances(position: Position, shape: Shape, radius: float) -> tuple[Slices, Floats]:
    """Distances to a position within the cube of half-width `radius` around it.

    Args:
        position: Centre of the cube, in voxels.
        shape: Voxels of the grid, which clips the cube.
        radius: Half the cube's width, in voxels.

    Returns:
        The clipped cube as slices, and the Euclidean distance in voxels from each of its voxels to `position`.
    """
    box = tuple(
        slice(max(0, int(np.ceil(centre - radius))), max(0, min(size, int(np.floor(centre + radius)) + 1)))
        for centre, size in zip(position, shape, strict=True)
    )
    squares = [
        np.square(np.arange(s.start, s.stop, dtype=np.float32) - centre)
        for s, centre in zip(box, position, strict=True)
    ]
    return box, np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])


def _falloff(distance: Floats, radius: float, encoding: Encoding) -> Floats:
    relative = distance / np.float32(radius)
    if encoding is Encoding.GAUSSIAN:
        return np.where(relative < 1, np.exp(np.float32(-4.5) * np.square(relative)), np.float32(0))
    falloff: Floats = np.maximum(0, 1 - relative)
    return falloff
