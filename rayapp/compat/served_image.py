"""The image of the request in progress, which the server has in memory already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayapp.geometry import Affine
from rayapp.imaging.volume import Volume

REACH = 1.0
"""Voxels by which a resampled grid may end before the image does, since its size is a whole number."""


@dataclass(frozen=True, kw_only=True)
class ServedImage:
    """The volume, and the path under which the app's transforms load it."""

    path: str
    volume: Volume


_served: ContextVar[ServedImage | None] = ContextVar("served_image", default=None)


@contextmanager
def serving(image: ServedImage) -> Iterator[None]:
    """Within the context, `served` returns this image."""
    token = _served.set(image)
    try:
        yield
    finally:
        _served.reset(token)


def served() -> ServedImage | None:
    """The image of the request in progress; None outside a request."""
    return _served.get()


def on_grid(
    labels: npt.NDArray[np.generic], affine: Affine, shape: tuple[int, ...], target: Affine
) -> npt.NDArray[np.generic]:
    """A label map on another grid, by nearest neighbour.

    Args:
        labels: Shape (I, J, K).
        affine: From its indices to RAS mm.
        shape: Shape of the other grid.
        target: From the other grid's indices to RAS mm.

    Returns:
        Label map of `shape`, 0 where `labels` does not reach.
    """
    matrix = np.linalg.inv(affine) @ target
    matrix[np.abs(matrix) < 1e-6] = 0
    turn = matrix[:3, :3]
    if (np.count_nonzero(turn, axis=1) == 1).all() and (np.count_nonzero(turn, axis=0) == 1).all():
        return _along_axes(labels, matrix, shape)
    from scipy import ndimage

    placed: npt.NDArray[np.generic] = ndimage.affine_transform(
        labels, turn, offset=matrix[:3, 3], output_shape=tuple(shape), order=0
    )
    return placed


def _along_axes(labels: npt.NDArray[np.generic], matrix: Affine, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """As `on_grid`, for grids with common axes: one row of indices for each axis."""
    sources = [int(np.flatnonzero(matrix[axis, :3])[0]) for axis in range(3)]
    rows, inside = [], [np.ones(0, bool)] * 3
    for axis, source in enumerate(sources):
        places = matrix[axis, source] * np.arange(shape[source]) + matrix[axis, 3]
        last = labels.shape[axis] - 1
        inside[source] = (places >= -0.5 - REACH) & (places <= last + 0.5 + REACH)
        rows.append(np.clip(np.rint(places), 0, last).astype(int))
    turned = labels[np.ix_(*rows)].transpose(np.argsort(sources))
    reached = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
    return np.where(reached, turned, np.zeros((), labels.dtype))
