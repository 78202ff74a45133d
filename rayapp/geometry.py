"""Affines and orientations: conversions between voxel index and millimetres. The only module that handles RAS and LPS.

Throughout rayapp an affine maps a voxel index (i, j, k) to RAS mm (x to the patient's right, y anterior, z superior),
as in NIfTI. DICOM and NRRD use LPS; `ras_to_lps` converts between the two in either direction. Pure functions;
thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
_FLIP = np.array([[-1.0], [-1.0], [1.0], [1.0]])


def ras_to_lps(affine: Affine) -> Affine:
    """The same grid with an affine to LPS mm; also converts LPS to RAS."""
    flipped: Affine = _FLIP * affine
    return flipped


def las_to_ras(affine: Affine) -> Affine:
    """The same grid with an affine to RAS mm, given one to LAS mm; also converts RAS to LAS."""
    flipped: Affine = np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine
    return flipped


def spacing(affine: Affine) -> npt.NDArray[np.float64]:
    """Millimetres between neighbouring voxels along i, j, k."""
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def index_to_mm(affine: Affine, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert indices of shape (…, 3) to RAS mm."""
    moved: npt.NDArray[np.float64] = np.asarray(points, float) @ affine[:3, :3].T + affine[:3, 3]
    return moved


def mm_to_index(affine: Affine, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert RAS mm of shape (…, 3) to fractional indices."""
    inverse: Affine = np.linalg.inv(affine).astype(np.float64)
    return index_to_mm(inverse, points)


def is_sane(affine: Affine) -> bool:
    """True if the affine is finite and invertible: no zero spacing, no two axes parallel."""
    if affine.shape != (4, 4) or not (np.abs(affine) < 1e7).all():  # also rejects NaN
        return False
    lengths = spacing(affine)
    return bool(lengths.min() > 1e-6) and abs(float(np.linalg.det(affine[:3, :3] / lengths))) > 1e-3


def is_orthogonal(affine: Affine) -> bool:
    """True if the axes are at right angles to within 0.001: no shear."""
    cosines = affine[:3, :3] / spacing(affine)
    return bool(np.abs(cosines.T @ cosines - np.eye(3)).max() < 1e-3)


def same_grid(
    a_shape: Shape, a_affine: Affine, b_shape: Shape, b_affine: Affine, *, tolerance_mm: float | None = None
) -> bool:
    """True if two grids have the same shape and their outer corners coincide.

    Files store affines as 32-bit floats or as text with few digits, so that round trips move corners by thousandths of
    a voxel. The default tolerance allows for that, while a flip, a shift by half a voxel or another spacing is still
    detected. The outer corners include half a voxel on each side, so that the normal of a single slice counts too.

    Args:
        a_shape: voxels along i, j, k of the first grid.
        a_affine: its affine.
        b_shape: voxels along i, j, k of the second grid.
        b_affine: its affine.
        tolerance_mm: maximum distance between corners in mm; by default 5 % of the smallest spacing of the first grid.
    """
    if tuple(a_shape) != tuple(b_shape):
        return False
    if tolerance_mm is None:
        tolerance_mm = 0.05 * float(spacing(a_affine).min())
    corners = np.array(list(product(*[(-0.5, n - 0.5) for n in a_shape])))
    distances = np.linalg.norm(index_to_mm(a_affine, corners) - index_to_mm(b_affine, corners), axis=-1)
    return bool(distances.max() <= tolerance_mm)


@dataclass(frozen=True)
class Orientation:
    """Axis permutation and flips that bring an array into canonical RAS order without copying.

    Attributes:
        axes: `axes[n]` is the source axis that becomes axis n.
        flips: `flips[n]` is True if that axis is reversed.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: Affine) -> Orientation:
        """The orientation of a grid: each source axis is assigned to the world axis it is most aligned with, best match
        first.
        """
        cosines = affine[:3, :3] / spacing(affine)
        alignment = np.abs(cosines)
        axes = [0, 0, 0]
        for _ in range(3):
            world, source = np.unravel_index(int(np.argmax(alignment)), (3, 3))
            axes[int(world)] = int(source)
            alignment[world, :] = -1
            alignment[:, source] = -1
        flips = [bool(cosines[world, source] < 0) for world, source in enumerate(axes)]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A canonical view of an array whose last three axes are i, j, k."""
        lead = array.ndim - 3
        permuted = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return permuted[(..., *self._slices)]

    def undo(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The source view of a canonical array; the inverse of `apply`."""
        lead = array.ndim - 3
        inverse = np.argsort(self.axes)
        return array[(..., *self._slices)].transpose(*range(lead), *(lead + int(axis) for axis in inverse))

    def apply_points(self, points: npt.ArrayLike, shape: Shape) -> npt.NDArray[Any]:
        """Convert source indices (…, 3) to canonical ones; `shape` is the source array's."""
        permuted = np.asarray(points)[..., list(self.axes)]
        sizes = np.array(shape)[list(self.axes)]
        flipped: npt.NDArray[Any] = np.where(self.flips, sizes - 1 - permuted, permuted)
        return flipped

    def undo_points(self, points: npt.ArrayLike, shape: Shape) -> npt.NDArray[Any]:
        """Convert canonical indices (…, 3) to source ones; `shape` is the source array's."""
        sizes = np.array(shape)[list(self.axes)]
        unflipped = np.where(self.flips, sizes - 1 - np.asarray(points), points)
        source: npt.NDArray[Any] = unflipped[..., np.argsort(self.axes)]
        return source

    def affine(self, affine: Affine, shape: Shape) -> Affine:
        """The affine of the canonical array, given the source's `affine` and `shape`."""
        step = np.zeros((4, 4))
        step[3, 3] = 1.0
        for canonical, (source, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            step[source, canonical] = -1.0 if flip else 1.0
            step[source, 3] = shape[source] - 1 if flip else 0
        moved: Affine = affine @ step
        return moved

    @property
    def _slices(self) -> tuple[slice, slice, slice]:
        first, second, third = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return first, second, third
