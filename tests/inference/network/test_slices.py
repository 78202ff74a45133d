"""A slice is turned and resampled in its plane only, and clicks lie on it where they were made."""

import numpy as np
import pytest

from rayapp.inference.network import slices
from tests.inference.grids import ORIENTATIONS, affine_of

SHAPE = (19, 26, 5)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::3])
@pytest.mark.parametrize("spacing", [0.0, 0.9])
def test_a_voxel_and_a_click_on_it_lie_in_the_same_place(orientation, spacing):
    affine = affine_of(orientation, (0.7, 1.3, 4.0), 9)
    point = (4, 21, 3)
    labels = np.zeros(SHAPE, np.uint8)
    labels[point[0] - 1 : point[0] + 2, point[1] - 1 : point[1] + 2, point[2]] = 7
    grid = slices.slice_grid(SHAPE, affine, spacing_mm=spacing, limit=(64, 64), divisor=(8, 8))
    onto = slices.label_stack(grid, affine, labels)
    assert onto.shape[0] == SHAPE[2]
    assert set(np.flatnonzero(onto.any(axis=(1, 2)))) == {3}
    (place,) = grid.positions([(*point[:2], 0)])
    plane = slices.plane(affine, onto[None], 3)[0]
    np.testing.assert_allclose(np.argwhere(plane == 7).mean(axis=0), place, atol=0.75)
    fields = slices.stack(grid, affine, labels.astype(np.float32))
    assert fields.shape == onto.shape
    np.testing.assert_array_equal(np.isnan(fields[0]), np.isnan(fields[4]))


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_at_its_own_spacing_every_pixel_is_a_voxel(orientation):
    affine = affine_of(orientation, (1.0, 1.0, 3.0))
    array = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    grid = slices.slice_grid(SHAPE, affine, spacing_mm=0, limit=(64, 64), divisor=(1, 1))
    fields = slices.stack(grid, affine, array)
    for k in range(SHAPE[2]):
        (order,) = np.unique(np.sort(fields[k].ravel()) == np.sort(array[:, :, k].ravel()))
        assert order
    for point in ((0, 0, 1), (18, 3, 2), (7, 25, 4)):
        (place,) = grid.positions([(*point[:2], 0)])
        assert slices.plane(affine, fields[None], point[2])[0][tuple(map(round, place))] == array[point]


@pytest.mark.parametrize("orientation", ORIENTATIONS[::3])
def test_each_axis_of_the_plane_has_its_own_step_in_patient_order(orientation):
    order, _ = orientation
    edges, shape = (0.7, 1.3, 4.0), (20, 26, 5)
    plane = sorted(order[:2])  # the patient axes of i and j
    of = {order[0]: (edges[0], shape[0]), order[1]: (edges[1], shape[1])}
    wanted = [of[axis][0] * factor for axis, factor in zip(plane, (1.0, 2.0), strict=True)]
    affine = affine_of(orientation, edges, 9)
    grid = slices.slice_grid(shape, affine, spacing_mm=wanted, limit=(64, 64), divisor=(4, 2))
    found = slices.stack(grid, affine, np.ones(shape, np.float32))
    sizes = [of[plane[0]][1], of[plane[1]][1] // 2]
    assert found.shape == (5, -(-sizes[0] // 4) * 4, -(-sizes[1] // 2) * 2)
    assert (~np.isnan(found[2])).sum() == sizes[0] * sizes[1]
