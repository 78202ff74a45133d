"""Clicks as image channels: the one encoding that training and inference share.

Each channel shows where the clicks of one label are: 1 at a click, falling with the Euclidean distance to the nearest
click of that label to 0 at `radius`. Distance-based discs guide better than Gaussians (autoPET IV, interactive track);
the Gaussian stays a choice for weights that were trained with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Position = tuple[float, float, float]
"""A place on the network's grid, in voxels; whole numbers are voxel centres."""
Box = tuple[slice, ...]

RADIUS = 8.0
"""Voxels from a click at which the shipped models' guidance ends."""


class Encoding(StrEnum):
    """How a channel falls off around a click."""

    DISTANCE = "distance"
    GAUSSIAN = "gaussian"


ENCODING = Encoding.DISTANCE
"""What images are guided with: the one choice that training and inference share."""


def encode(
    clicks: Sequence[Sequence[Position]],
    shape: tuple[int, int, int],
    *,
    radius: float = RADIUS,
    encoding: Encoding = ENCODING,
) -> Floats:
    """One channel for each list of clicks.

    Args:
        clicks: per channel, positions on the grid.
        shape: voxels of the grid.
        radius: voxels from a click at which guidance is 0 (three standard deviations for the Gaussian).

    Returns:
        Shape (len(clicks), *shape), values 0 to 1; a channel without clicks is 0.
    """
    channels = np.zeros((len(clicks), *shape), dtype=np.float32)
    for channel, positions in zip(channels, clicks, strict=True):
        _draw(channel, positions, radius, encoding)
    return channels


class GuidedImage:
    """The channels of an image, (C, R, A, S), followed by one for each list of clicks, as `encode` makes them.

    Channels come last in memory, which is how networks like to read them. The memory is used again: `show` wipes what
    it drew before. Belongs to one thread.
    """

    def __init__(self, image: Floats, lists: int) -> None:
        count, *shape = image.shape
        self._channels = np.moveaxis(np.zeros((*shape, count + lists), dtype=np.float32), -1, 0)
        self._channels[:count] = image
        self._guidance = self._channels[count:]
        self._drawn: list[tuple[Floats, Box]] = []

    def show(self, clicks: Sequence[Sequence[Position]]) -> Floats:
        """The channels with these clicks, valid until the next call."""
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
        """Bytes it holds."""
        return self._channels.nbytes


def _draw(channel: Floats, positions: Sequence[Position], radius: float, encoding: Encoding) -> list[Box]:
    """Draw, and say where."""
    shape = (channel.shape[0], channel.shape[1], channel.shape[2])
    boxes = []
    for position in positions:
        box, distance = distances(position, shape, radius)
        np.maximum(channel[box], _falloff(distance, radius, encoding), out=channel[box])
        boxes.append(box)
    return boxes


def distances(position: Position, shape: tuple[int, int, int], radius: float) -> tuple[Box, Floats]:
    """The box of voxels within `radius` of a position along each axis, and their Euclidean distances to it."""
    box = tuple(
        slice(max(0, int(np.ceil(at - radius))), max(0, min(n, int(np.floor(at + radius)) + 1)))
        for at, n in zip(position, shape, strict=True)
    )
    squares = [
        np.square(np.arange(s.start, s.stop, dtype=np.float32) - at) for s, at in zip(box, position, strict=True)
    ]
    return box, np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])


def _falloff(distance: Floats, radius: float, encoding: Encoding) -> Floats:
    near = distance / np.float32(radius)
    fallen: Floats = np.maximum(0, 1 - near)
    if encoding is Encoding.GAUSSIAN:
        fallen = np.where(near < 1, np.exp(np.float32(-4.5) * np.square(near)), np.float32(0))
    return fallen
