"""The network grid: mapping between a source image and the voxels that a network sees.

Three frames are involved:

- *source*: voxel indices (i, j, k) of the file;
- *resampled*: the source's axes and exactly its extent, with fewer or more voxels;
- *network*: the resampled grid reoriented to canonical RAS axes and padded at its end to a size the network takes.

Parameters with one number per axis (spacing, limits, divisors) are along R, A, S of the network grid, never along
i, j, k. Resampling aligns the grids' extents, not the centres of their corner voxels (`align_corners=False`): along an
axis of n source and m resampled voxels, resampled = (source + 1/2) m/n - 1/2, so that nothing shifts by half a voxel.

Reorientation happens on the resampled grid, where it is cheap. Resampling multiplies by a small dense matrix along each
axis. Arrays in the source frame have i fastest in memory, as files do. Pure functions, thread-safe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from rayapp.geometry import Orientation, spacing
from rayapp.imaging.volume import Affine
from rayapp.inference.arrays import Floats, Labels, Shape, contiguous
from rayapp.inference.infer_task import Point
from rayapp.inference.prompts.guidance import Position

logger = logging.getLogger(__name__)

MAX_AXIS = 4096
"""Largest number of network voxels along an axis that a spacing in mm may ask for, whatever size a file claims."""
MAX_FINER, ALWAYS = 64, 1 << 21
"""Limits on the number of network voxels: relative to the image's own, and one that any image may reach. An image whose
micrometres are read as millimetres must not cost minutes."""
MAX_LOGITS = 1 << 32
"""Largest number of logits, all classes together, that a network may give for one image: 16 GiB."""
TIE = 1e-5
"""Difference below which two shares of a voxel count as equal; of equals, a structure holds over background."""
SLAB = 16
"""Planes processed at a time, so that they stay in the processor's cache."""


Voxel = TypeVar("Voxel", bound=np.generic)
"""Type of an array's values."""


@dataclass(frozen=True, kw_only=True)
class NetworkGrid:
    """Mapping from the source grid to the network grid.

    Attributes:
        source: Source voxels along i, j, k.
        resampled: Voxels of the resampled grid along i, j, k.
        orientation: Permutation and flips from the source's axes to R, A, S.
        padded: Voxels of the network grid along R, A, S.
        coarsening: Ratio of the voxels' edges to those that were asked for: above 1 where the image has too many.
    """

    source: Shape
    resampled: Shape
    orientation: Orientation
    padded: Shape
    coarsening: float = 1.0

    @classmethod
    def fit(
        cls,
        shape: Shape,
        affine: Affine,
        *,
        spacing_mm: float | Sequence[float],
        limit: Sequence[int] | None,
        divisor: int | Sequence[int],
        max_voxels: int | None = None,
    ) -> NetworkGrid:
        """Fit a network grid to an image; it covers the whole image.

        In an oblique or permuted image, R, A and S each stand for the image axis nearest to them. The spacing is kept
        unless the image has too many voxels of it: then all axes are coarsened alike, and a warning is logged. An image
        that would be one voxel at the network's deepest level, where nothing can be normalised, is padded further.

        Args:
            shape: Source voxels along i, j, k.
            affine: Source index to RAS mm.
            spacing_mm: Network spacing in mm, one number or one each along R, A, S; 0 keeps the source's voxels along
                its axis.
            limit: Largest number of voxels along R, A, S, for networks that see the whole image at once: the spacing
                grows along the axes where it would be exceeded.
            divisor: Sizes are padded to multiples of these, one number or one each along R, A, S.
            max_voxels: Largest number of voxels in all.
        """
        orientation = Orientation.of(affine)
        axes = list(orientation.axes)
        size, edges = np.array(shape)[axes], spacing(affine)[axes]
        step = np.broadcast_to(np.asarray(spacing_mm, dtype=float), 3)
        wanted = np.where(step > 0, size * edges / np.where(step > 0, step, 1), size)
        finest = max(ALWAYS, MAX_FINER * int(np.prod(size)))
        coarsening = _coarsening(wanted, np.where(step > 0, MAX_AXIS, np.inf), min(max_voxels or finest, finest))
        canonical = np.maximum(1, np.rint(wanted / coarsening)).astype(int)
        if limit is not None:
            canonical = np.minimum(limit, canonical)
        divisors = np.broadcast_to(np.asarray(divisor), 3)
        padded = -(-canonical // divisors) * divisors
        longest = int(np.argmax(divisors))
        room = limit is None or limit[longest] >= 2 * divisors[longest]
        if (padded == divisors).all() and divisors[longest] > 1 and room:
            padded[longest] *= 2
        resampled = _shape(canonical[np.argsort(axes)])
        grid = cls(
            source=shape, resampled=resampled, orientation=orientation, padded=_shape(padded), coarsening=coarsening
        )
        if coarsening > 1:
            logger.warning("voxels are %.2f times as large as asked for: %s", coarsening, grid.remarks["coarsened"])
        return grid

    @property
    def remarks(self) -> dict[str, str]:
        """The grid's entries in an answer's `params`: `coarsened`, if it is coarser than requested."""
        if self.coarsening == 1:
            return {}
        sizes = "x".join(map(str, self.canonical))
        return {"coarsened": f"the image has too many voxels; it was segmented on {sizes} coarser ones"}

    @property
    def canonical(self) -> Shape:
        """Voxels along R, A, S that cover the image, without padding."""
        return _shape(self.resampled[axis] for axis in self.orientation.axes)

    def positions(self, points: Iterable[Point]) -> list[Position]:
        """Positions of source voxels' centres on the network grid, in (fractional) voxels along R, A, S."""
        scale = np.array(self.resampled) / self.source
        resampled = (np.array(list(points), dtype=np.float64).reshape(-1, 3) + 0.5) * scale - 0.5
        canonical = self.orientation.apply_points(resampled, self.resampled)
        return [(float(x), float(y), float(z)) for x, y, z in canonical]

    def from_source(self, array: npt.NDArray[np.generic]) -> Floats:
        """Resample one channel to the network grid, with anti-aliasing.

        Args:
            array: Intensities, (I, J, K).

        Returns:
            Shape `padded`; padding is NaN.
        """
        matrices = [_averaging_matrix(n, m) for n, m in zip(self.source, self.resampled, strict=True)]
        canonical = self.orientation.apply(_resample(array, matrices))
        return np.pad(
            canonical, [(0, p - n) for p, n in zip(self.padded, canonical.shape, strict=True)], constant_values=np.nan
        )

    def labels_from_source(self, labels: npt.NDArray[Any]) -> Labels:
        """Resample a label map to the network grid: the label of the largest share in each voxel.

        Shares are averages like those of intensities, so that labels lie where the image shows them. Where a structure
        is too thin to have the largest share anywhere near, the voxels that contain it keep its label.

        Args:
            labels: Label map (I, J, K) with values up to 255.

        Returns:
            Shape `padded`; padding is 0.
        """
        labels = labels.astype(np.uint8, copy=False)
        matrices = [_averaging_matrix(n, m) for n, m in zip(self.source, self.resampled, strict=True)]
        resampled = np.zeros(self.resampled, dtype=np.uint8)
        best, background = np.full(self.resampled, TIE, dtype=np.float32), np.ones(self.resampled, dtype=np.float32)
        for value, box in enumerate(ndimage.find_objects(labels), start=1):
            if box is None:
                continue
            reached = tuple(_reached(matrix, side) for matrix, side in zip(matrices, box, strict=True))
            parts = [matrix[rows, side] for matrix, rows, side in zip(matrices, reached, box, strict=True)]
            share = _resample((labels[box] == value).view(np.uint8), parts)
            resampled[reached][share > best[reached]] = value
            np.maximum(best[reached], share, out=best[reached])
            background[reached] -= share
        resampled[background > best + TIE] = 0
        self._keep_thin(labels, resampled)
        canonical = self.orientation.apply(resampled)
        padding = [(0, p - n) for p, n in zip(self.padded, canonical.shape, strict=True)]
        return np.pad(canonical, padding)

    def _keep_thin(self, labels: Labels, resampled: Labels) -> None:
        """Restore structures, in place, of which the voxel that contains them and its neighbours have no label."""
        scale = np.array(self.resampled) / self.source
        for value, box in enumerate(ndimage.find_objects(labels), start=1):
            if box is None:
                continue
            near = ndimage.binary_dilation(resampled == value, np.ones((3, 3, 3)))
            voxels = np.argwhere(labels[box] == value) + [side.start for side in box]
            at = tuple(((voxels + 0.5) * scale).astype(np.intp).T)
            lost = ~near[at]
            resampled[tuple(index[lost] for index in at)] = value

    def to_source_axes(self, field: npt.NDArray[Voxel]) -> npt.NDArray[Voxel]:
        """Undo padding and reorientation: a field of shape `padded` as a (k, j, i) view on the resampled grid."""
        a, b, c = self.canonical
        undone: npt.NDArray[Voxel] = self.orientation.undo(field[:a, :b, :c]).transpose(2, 1, 0)
        return undone


def _coarsening(wanted: npt.NDArray[np.float64], most: npt.NDArray[np.float64], max_voxels: int | None) -> float:
    """The factor, at least 1, by which voxels must grow along all axes.

    Args:
        wanted: Voxels requested along the axes.
        most: Largest number along each of them.
        max_voxels: Largest total number.
    """
    coarsening = max(1.0, float((wanted / most).max()))
    while max_voxels and (excess := np.maximum(1, np.rint(wanted / coarsening)).prod() / max_voxels) > 1:
        coarsening *= max(1.001, float(excess ** (1 / 3)))
    return coarsening


def _averaging_matrix(n: int, m: int) -> Floats:
    """Weights (m, n) from n samples to m: linear interpolation, widened to the target step to avoid aliasing."""
    step = n / m
    centre = (np.arange(m) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(np.clip(centre, 0, n - 1)[:, None] - np.arange(n)) / max(1.0, step))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def least_finite(array: npt.NDArray[Any]) -> float:
    """The least finite value of an array, which stands in for voxels that are not numbers; 0 if there is none."""
    if array.dtype.kind != "f":
        return 0.0
    least = np.inf
    for plane in array:
        lowest = float(plane.min(initial=np.inf))
        least = min(least, lowest if np.isfinite(lowest) else float(plane[np.isfinite(plane)].min(initial=np.inf)))
    return least if least < np.inf else 0.0


def _reached(matrix: Floats, side: slice) -> slice:
    """The rows of an averaging matrix on which the samples of a slice have an influence."""
    rows = np.flatnonzero(matrix[:, side].any(axis=1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0)


def _resample(array: npt.NDArray[Any], matrices: Sequence[Floats]) -> Floats:
    """Multiply by one matrix along each axis, slab by slab, so that the image is never copied to float as a whole."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    view = array.transpose(order)
    slow, middle, fast = (torch.from_numpy(matrices[axis]) for axis in order)
    least = least_finite(view)
    total = torch.zeros(len(slow), len(middle) * len(fast))
    for start in range(0, len(view), SLAB):
        slab = view[start : start + SLAB].astype(np.float32)
        if array.dtype.kind == "f":
            slab[~np.isfinite(slab)] = least
        part = middle @ (torch.from_numpy(contiguous(slab)) @ fast.T)
        total += slow[:, start : start + SLAB] @ part.flatten(1)
    result: Floats = total.view(len(slow), len(middle), len(fast)).numpy().transpose(np.argsort(order))
    return result


def _shape(sizes: Iterable[int]) -> Shape:
    i, j, k = (int(n) for n in sizes)
    return i, j, k
