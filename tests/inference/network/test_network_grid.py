"""A network's grid lies on the source as patient space says, whatever the header claims."""

import nibabel as nib
import numpy as np
import pytest

from rayapp.inference.network.network_grid import MAX_AXIS, NetworkGrid
from tests.inference.grids import ORIENTATIONS, affine_of

SHAPE = (19, 26, 14)


def test_turning_agrees_with_an_independent_reader():
    array = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    affine = affine_of(ORIENTATIONS[37], (0.7, 1.3, 4.0), oblique=9)
    grid = NetworkGrid.fit(SHAPE, affine, spacing_mm=0, limit=None, divisor=1)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(grid.from_source(array), canonical.get_fdata(dtype=np.float32))


def test_a_header_with_absurd_spacing_allocates_no_absurd_grid():
    affine = affine_of(ORIENTATIONS[0], (1e6, 1.0, 1e-6))
    grid = NetworkGrid.fit(SHAPE, affine, spacing_mm=1.0, limit=None, divisor=8)
    assert max(grid.padded) <= MAX_AXIS
    assert min(grid.padded) >= 1


@pytest.mark.parametrize("orientation", ORIENTATIONS[::11])
def test_a_spacing_is_kept_however_large_the_image_is(orientation):
    shape, edges = (520, 530, 610), (0.9, 0.8, 1.5)  # a whole body, at the spacing of many models
    grid = NetworkGrid.fit(
        shape, affine_of(orientation, edges, 9), spacing_mm=1.5, limit=None, divisor=1, max_voxels=1 << 27
    )
    edges_now = np.multiply(shape, edges) / grid.resampled
    np.testing.assert_allclose(edges_now, 1.5, rtol=0.005)
    assert not grid.remarks
    own = NetworkGrid.fit((1024, 1024, 1024), np.eye(4), spacing_mm=0, limit=None, divisor=1)
    assert own.resampled == (1024, 1024, 1024)


@pytest.mark.parametrize("max_voxels", [1000, 12_345, 100_000])
@pytest.mark.parametrize("spacing_mm", [1.0, (0, 0, 2.0)])
def test_too_many_voxels_are_coarsened_along_all_axes_alike_and_that_is_said(max_voxels, spacing_mm, caplog):
    affine, shape = np.diag([1.0, 1.2, 4.0, 1.0]), (90, 100, 40)
    wanted = NetworkGrid.fit(shape, affine, spacing_mm=spacing_mm, limit=None, divisor=1)
    grid = NetworkGrid.fit(shape, affine, spacing_mm=spacing_mm, limit=None, divisor=1, max_voxels=max_voxels)
    assert max_voxels / 2 < np.prod(grid.resampled) <= max_voxels
    ratios = np.divide(wanted.resampled, grid.resampled)
    assert ratios.max() / ratios.min() < 1.1, "but for whole numbers of voxels"
    assert "x".join(map(str, grid.canonical)) in grid.remarks["coarsened"]
    assert "coarser" in caplog.text


def test_limits_lie_along_patient_axes():
    order, signs = (2, 0, 1), (1.0, -1.0, 1.0)  # i runs along S, j along R, k along A
    grid = NetworkGrid.fit((90, 80, 70), affine_of((order, signs)), spacing_mm=1.0, limit=(40, 48, 56), divisor=8)
    assert grid.padded == (40, 48, 56)
    assert grid.resampled == (56, 40, 48)


def test_an_axis_without_a_spacing_keeps_the_sources_voxels():
    order, signs = (2, 0, 1), (1.0, -1.0, 1.0)  # i runs along S, j along R, k along A
    affine = affine_of((order, signs), (0.5, 1.0, 3.0))
    grid = NetworkGrid.fit((90, 80, 20), affine, spacing_mm=(2.0, 0, 1.5), limit=None, divisor=1)
    assert grid.canonical == (40, 20, 30)
    assert grid.resampled == (30, 40, 20)
