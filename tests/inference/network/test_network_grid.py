"""A network's grid lies on the source as patient space says, whatever the header claims."""

import nibabel as nib
import numpy as np

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
