"""Affines and orientations: index <-> millimetres <-> index. The only place that knows RAS and LPS.

Everywhere in rayapp an affine maps a voxel index (i, j, k) to RAS millimetres (x to the patient's right, y anterior,
z superior), as NIfTI does. DICOM and NRRD speak LPS; `ras_to_lps` is the bridge and its own inverse. Functions are
pure and may run anywhere.
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
    """The same grid in LPS millimetres (and from LPS back to RAS)."""
    flipped: Affine = _FLIP * affine
    return flipped


def las_to_ras(affine: Affine) -> Affine:
    """A grid given in LAS millimetres, in RAS (and back)."""
    flipped: Affine = np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine
    return flipped


def spacing(affine: Affine) -> npt.NDArray[np.float64]:
    """Millimetres between neighbours along i, j, k."""
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def index_to_mm(affine: Affine, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Indices of shape (…, 3) to RAS millimetres."""
    moved: npt.NDArray[np.float64] = np.asarray(points, float) @ affine[:3, :3].T + affine[:3, 3]
    return moved


def mm_to_index(affine: Affine, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """RAS millimetres of shape (…, 3) to (fractional) indices."""
    inverse: Affine = np.linalg.inv(affine).astype(np.float64)
    return index_to_mm(inverse, points)


def is_sane(affine: Affine) -> bool:
    """True when the affine is finite and its axes span space (no zero spacing, no two axes alike)."""
    if affine.shape != (4, 4) or not (np.abs(affine) < 1e7).all():  # NaN is not less either
        return False
    lengths = spacing(affine)
    return bool(lengths.min() > 1e-6) and abs(float(np.linalg.det(affine[:3, :3] / lengths))) > 1e-3


def is_orthogonal(affine: Affine) -> bool:
    """True when the axes stand at right angles (to a thousandth): no shear."""
    cosines = affine[:3, :3] / spacing(affine)
    return bool(np.abs(cosines.T @ cosines - np.eye(3)).max() < 1e-3)


def same_grid(
    a_shape: Shape, a_affine: Affine, b_shape: Shape, b_affine: Affine, *, tolerance_mm: float | None = None
) -> bool:
    """True when two grids have the same shape and their outer corners coincide within `tolerance_mm`.

    Headers hold affines as 32-bit floats or as text of a few digits, so round trips move corners by thousandths of a
    voxel; the default, a twentieth of the smallest spacing, allows that, and a flip, a shift of half a voxel or
    another spacing is still another grid. A single slice has its thickness, so its normal counts too.
    """
    if tuple(a_shape) != tuple(b_shape):
        return False
    if tolerance_mm is None:
        tolerance_mm = 0.05 * float(spacing(a_affine).min())
    corners = np.array(list(product(*[(-0.5, n - 0.5) for n in a_shape])))
    apart = np.linalg.norm(index_to_mm(a_affine, corners) - index_to_mm(b_affine, corners), axis=-1)
    return bool(apart.max() <= tolerance_mm)


@dataclass(frozen=True)
class Orientation:
    """The axis permutation and the flips that bring an array to canonical RAS order, without copying.

    `axes[n]` is the source axis that becomes axis n; `flips[n]` says whether it is reversed then.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: Affine) -> Orientation:
        """The orientation of a grid: each source axis goes to the world axis it is most aligned with, best first."""
        cosines = affine[:3, :3] / spacing(affine)
        left = np.abs(cosines)
        axes = [0, 0, 0]
        for _ in range(3):
            world, source = np.unravel_index(int(np.argmax(left)), (3, 3))
            axes[int(world)] = int(source)
            left[world, :] = -1
            left[:, source] = -1
        flips = [bool(cosines[world, source] < 0) for world, source in enumerate(axes)]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A canonical view of an array whose last three axes are i, j, k."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return turned[(..., *self._slices)]

    def undo(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The source view of a canonical array: `undo(apply(a))` is `a`."""
        lead = array.ndim - 3
        back = np.argsort(self.axes)
        return array[(..., *self._slices)].transpose(*range(lead), *(lead + int(axis) for axis in back))

    def apply_points(self, points: npt.ArrayLike, shape: Shape) -> npt.NDArray[Any]:
        """Source indices (…, 3) to canonical ones; `shape` is the source array's."""
        moved = np.asarray(points)[..., list(self.axes)]
        sizes = np.array(shape)[list(self.axes)]
        flipped: npt.NDArray[Any] = np.where(self.flips, sizes - 1 - moved, moved)
        return flipped

    def undo_points(self, points: npt.ArrayLike, shape: Shape) -> npt.NDArray[Any]:
        """Canonical indices (…, 3) to source ones; `shape` is the source array's."""
        sizes = np.array(shape)[list(self.axes)]
        moved = np.where(self.flips, sizes - 1 - np.asarray(points), points)
        back: npt.NDArray[Any] = moved[..., np.argsort(self.axes)]
        return back

    def affine(self, affine: Affine, shape: Shape) -> Affine:
        """The canonical array's affine; `affine` and `shape` are the source's."""
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
