"""Grids and volumes that no flip, swap or half-voxel shift leaves alike, and SimpleITK as the independent reader."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.imaging.volume import Grid

Affine = npt.NDArray[np.float64]
SHAPE = (5, 7, 4)
MAX = 1 << 30
ORIGIN = (-91.25, 17.5, 203.75)
SPACING = (0.75, 1.5, 3.25)


def turned(angles: tuple[float, float, float], signs: tuple[int, int, int] = (1, 1, 1)) -> Affine:
    """An affine with anisotropic spacing, turned by `angles` (degrees, about x, y, z), its axes reversed by `signs`."""
    a, b, c = np.deg2rad(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x * np.array(SPACING) * np.array(signs)
    affine[:3, 3] = ORIGIN
    return affine


def swapped(axes: tuple[int, int, int], signs: tuple[int, int, int] = (1, 1, 1)) -> Affine:
    """An affine whose array axes run along other world axes."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * SPACING * np.array(signs))[list(axes)]
    affine[:3, 3] = ORIGIN
    return affine


AFFINES: dict[str, Affine] = {
    "straight": turned((0, 0, 0)),
    "flipped": turned((0, 0, 0), (-1, -1, 1)),
    "left-handed": turned((0, 0, 0), (1, 1, -1)),
    "oblique": turned((12, -7, 21)),
    "oblique-flipped": turned((-33, 14, 5), (-1, 1, -1)),
    **{f"permuted-{''.join(map(str, axes))}": swapped(axes, (1, -1, 1)) for axes in permutations(range(3))},
}
every_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())


def voxels(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16) -> npt.NDArray[Any]:
    """Every voxel another number, so that each one's place can be checked."""
    return np.random.default_rng(7).permutation(int(np.prod(shape))).astype(dtype).reshape(shape)


def labels(shape: tuple[int, int, int] = SHAPE, most: int = 3, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    """A label map, asymmetric along each axis; holds `most` and 0."""
    array = np.random.default_rng(3).integers(0, most + 1, shape).astype(dtype)
    array[0, 0, 0], array[-1, 0, 0] = most, 0
    return array


def itk_affine(image: sitk.Image) -> Affine:
    """Index to RAS mm, from what SimpleITK says in LPS."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def itk_image(array: npt.NDArray[Any], affine: Affine) -> sitk.Image:
    """A SimpleITK image of an (I, J, K) array, or of a (C, I, J, K) one as a vector image."""
    vector = array.ndim == 4
    image = sitk.GetImageFromArray(array.transpose(3, 2, 1, 0) if vector else array.T, isVector=vector)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def itk_voxels(image: sitk.Image) -> npt.NDArray[Any]:
    """(C, I, J, K)."""
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        return array.transpose(3, 2, 1, 0)
    return array.T[np.newaxis]


def assert_same_affine(found: Affine, wanted: Affine) -> None:
    """To a ten-thousandth of a millimetre in every entry: 32-bit floats reach that, no convention slip does."""
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def assert_same_grid(grid: Grid, image: sitk.Image) -> None:
    assert grid.shape == image.GetSize()
    assert_same_affine(grid.affine, itk_affine(image))
