"""Masks return to the same voxels of the source, on every grid."""

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Resize
from scipy import ndimage
from torch.nn import functional

from rayapp.inference.network import restoration
from rayapp.inference.network.network_grid import NetworkGrid
from tests.inference.grids import ORIENTATIONS, affine_of, ellipsoid

SHAPE = (19, 26, 14)


def threshold(image, level=0.5):
    """Logits (2, …) of a network that marks what is above `level`."""
    image = torch.from_numpy(image)
    return torch.stack([level - image, image - level]).nan_to_num(-1.0)


def there_and_back(array, affine, *, spacing_mm=0.0, limit=None, divisor=8, roi=None, level=0.5):
    grid = NetworkGrid.fit(array.shape, affine, spacing_mm=spacing_mm, limit=limit, divisor=divisor)
    log_odds = restoration.log_odds(threshold(grid.from_source(array), level))
    return restoration.restore(log_odds, grid, roi=roi)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_comes_back_exactly_when_the_network_keeps_the_voxels(orientation):
    mask = (np.random.default_rng(3).random(SHAPE) > 0.7).astype(np.int16)
    back = there_and_back(mask, affine_of(orientation, (0.7, 1.3, 4.0), oblique=9))
    np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
@pytest.mark.parametrize("spacing_mm", [1.1, 2.3, 3.9])
def test_a_resampled_mask_moves_by_less_than_a_tenth_of_a_voxel(orientation, spacing_mm):
    shape = (46, 61, 38)
    field = ellipsoid(shape, (20.3, 34.6, 17.2), (12, 17, 9))
    truth = field > 0
    back = there_and_back(field, affine_of(orientation, (1.0, 1.2, 2.0), oblique=7), spacing_mm=spacing_mm, level=0.0)
    shift = np.argwhere(back).mean(axis=0) - np.argwhere(truth).mean(axis=0)
    assert np.abs(shift).max() < 0.1, shift
    cross = ndimage.generate_binary_structure(3, 3)
    assert not (back.astype(bool) & ~ndimage.binary_dilation(truth, cross)).any()
    assert not (ndimage.binary_erosion(truth, cross) & ~back.astype(bool)).any()


def test_a_coarse_source_restores_as_well_as_a_fine_one():
    field = ellipsoid((22, 18, 15), (10.2, 8.1, 7.3), (6, 5, 4))
    back = there_and_back(field, affine_of(ORIENTATIONS[29], (4.0, 3.0, 5.0)), spacing_mm=1.5, level=0.0)
    assert (back != (field > 0)).mean() < 0.01


def test_several_structures_keep_their_values_and_never_mix():
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((4, 16, 16, 16)), (0, 2, 2, 2)))
    affine = affine_of(ORIENTATIONS[11], (1.0, 1.1, 1.7))
    grid = NetworkGrid.fit((48, 40, 30), affine, spacing_mm=4.0, limit=(16, 16, 16), divisor=16)
    logits = smooth.float() * 10
    together = logits[[0, 2, 1, 3]]  # the same, its structures in another order
    labels = restoration.restore(restoration.log_odds(logits), grid)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    swapped = restoration.restore(restoration.log_odds(together), grid)
    np.testing.assert_array_equal(np.array([0, 2, 1, 3])[swapped], labels)


def canonical_grid(shape, ratio):
    """A grid along R, A, S whose network voxels are `ratio` times as large as the source's voxels of 1 mm."""
    return NetworkGrid.fit(shape, np.diag([1.0, 1, 1, 1]), spacing_mm=ratio, limit=None, divisor=1)


def largest_logit(logits, grid):
    """The class of the largest logit by an independent interpolation, and by how much it leads."""
    fine = functional.interpolate(logits[None], size=grid.source, mode="trilinear", align_corners=False)[0]
    first, second = fine.topk(2, dim=0).values
    return fine.argmax(0).numpy(), (first - second).numpy()


@pytest.mark.parametrize("ratio", [0.7, 1.5, 2.0, 2.7, 4.0])
def test_each_voxel_has_the_class_of_its_largest_interpolated_logit(ratio):
    grid = canonical_grid((41, 38, 43), ratio)
    noise = np.random.default_rng(2).standard_normal((5, *grid.padded))
    logits = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 1, 1, 1))).float() * 10
    expected, certain = largest_logit(logits, grid)
    labels = restoration.restore(restoration.log_odds(logits.clone()), grid)
    np.testing.assert_array_equal(labels[certain > 1e-4], expected[certain > 1e-4])


@pytest.mark.parametrize("spacing_mm", [0.9, 1.7, (2.0, 3.1, 1.3)])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::13])
def test_masks_are_those_of_simpleitks_interpolation_of_each_logit(orientation, spacing_mm):
    shape, edges = (33, 28, 21), (0.8, 1.1, 2.0)
    grid = NetworkGrid.fit(shape, affine_of(orientation, edges, 11), spacing_mm=spacing_mm, limit=None, divisor=4)
    noise = np.random.default_rng(6).standard_normal((4, *grid.padded))
    logits = ndimage.gaussian_filter(noise, (0, 1, 1, 1)).astype(np.float32) * 10
    fine = []
    for field in logits:
        image = sitk.GetImageFromArray(np.ascontiguousarray(grid.to_source_axes(field)))
        steps = np.divide(grid.source, grid.resampled)  # in source voxels
        image.SetSpacing(steps.tolist())
        image.SetOrigin((steps / 2 - 0.5).tolist())
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize(grid.source)
        resampler.UseNearestNeighborExtrapolatorOn()
        fine.append(sitk.GetArrayFromImage(resampler.Execute(image)).transpose(2, 1, 0))
    first, second = np.sort(fine, axis=0)[[-1, -2]]
    certain = first - second > 1e-3
    assert certain.mean() > 0.99
    labels = restoration.restore(restoration.log_odds(torch.from_numpy(logits.copy())), grid)
    np.testing.assert_array_equal(labels[certain], np.argmax(fine, axis=0)[certain])


def forwards(array, affine, grid):
    """MONAI's own way of an image to the network grid, which remembers the way back."""
    image = MetaTensor(torch.from_numpy(array[None].astype(np.float32)), affine=torch.from_numpy(affine))
    way = Compose([Orientation("RAS", labels=None), Resize(grid.canonical, mode="trilinear", align_corners=False)])
    return way, way(image)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
@pytest.mark.parametrize("spacing_mm", [0.0, 0.8, 2.3, (1.1, 3.0, 1.7)])
def test_masks_are_those_of_monais_inverse_transforms_of_each_logit(orientation, spacing_mm):
    shape, edges = (23, 18, 31), (0.8, 1.1, 2.0)
    affine = affine_of(orientation, edges, 11)
    grid = NetworkGrid.fit(shape, affine, spacing_mm=spacing_mm, limit=None, divisor=4)
    noise = np.random.default_rng(8).standard_normal((3, *grid.padded))
    logits = ndimage.gaussian_filter(noise, (0, 1, 1, 1)).astype(np.float32) * 10
    fine = []
    for field in logits:
        way, there = forwards(np.zeros(shape), affine, grid)
        there[0] = torch.from_numpy(field[tuple(map(slice, grid.canonical))].copy())
        fine.append(way.inverse(there)[0].numpy())
    first, second = np.sort(fine, axis=0)[[-1, -2]]
    certain = first - second > 1e-3
    assert certain.mean() > 0.99
    labels = restoration.restore(restoration.log_odds(torch.from_numpy(logits.copy())), grid)
    np.testing.assert_array_equal(labels[certain], np.argmax(fine, axis=0)[certain])


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_a_finer_network_grid_shows_the_image_that_monais_transforms_show(orientation):
    array = np.random.default_rng(4).normal(0, 100, (13, 18, 11)).astype(np.float32)
    affine = affine_of(orientation, (2.0, 3.1, 4.0), 11)
    grid = NetworkGrid.fit(array.shape, affine, spacing_mm=1.3, limit=None, divisor=4)
    _, expected = forwards(array, affine, grid)
    found = grid.from_source(array)[tuple(map(slice, grid.canonical))]
    np.testing.assert_allclose(found, expected[0].numpy(), atol=0.01)


@pytest.mark.parametrize("ratio", [1.5, 2.0, 2.5, 3.0, 4.0])
@pytest.mark.parametrize(("slope", "background"), [(4.0, -1.0), (2.0, 0.0)])
@pytest.mark.parametrize("border", [23.2, 24.3])
def test_no_background_lies_between_structures_that_touch(ratio, slope, background, border):
    grid = canonical_grid((48, 20, 20), ratio)
    x = torch.from_numpy((np.arange(grid.padded[0]) + 0.5) * 48 / grid.padded[0] - 0.5).float()
    lead = (slope * (x - border))[:, None, None].expand(grid.padded)
    logits = torch.stack([torch.full(grid.padded, background), lead, -lead])
    labels = restoration.restore(restoration.log_odds(logits), grid)
    assert (labels[:23] == 2).all()
    assert (labels[25:] == 1).all()
    assert (labels > 0).all()


@pytest.mark.parametrize("ratio", [1.5, 2.0, 2.5, 3.0, 4.0])
def test_labels_that_meet_leave_no_hole_where_they_do(ratio):
    grid = canonical_grid((48, 48, 8), ratio)
    i, j, _ = np.indices(grid.padded)
    turn = np.arctan2(j - grid.padded[1] / 2 + 0.3, i - grid.padded[0] / 2 + 0.2)
    sectors = np.digitize(turn, [-np.pi / 3, np.pi / 3]).astype(np.uint8) + 1
    labels = restoration.restore_labels(sectors, grid)
    assert set(np.unique(labels)) == {1, 2, 3}
    one_hot = torch.from_numpy(np.stack([sectors == value for value in range(4)])).float()
    expected, certain = largest_logit(one_hot, grid)
    np.testing.assert_array_equal(labels[certain > 1e-4], expected[certain > 1e-4])


def test_a_label_map_of_many_structures_needs_little_memory():
    grid = canonical_grid((64, 64, 64), 1.6)
    labels = (np.indices(grid.padded).sum(0) // 2 % 105).astype(np.uint8)
    tracemalloc.start()
    try:
        restoration.restore_labels(labels, grid)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 64**3, "a few floats for each voxel, not one for each structure"


def test_labels_are_laid_out_as_files_are():
    labels = there_and_back(np.ones(SHAPE, np.int16), affine_of(ORIENTATIONS[5]))
    assert labels.dtype == np.uint8
    assert labels.flags.f_contiguous
    assert (labels == 1).all()


def test_outside_the_roi_all_is_background():
    mask = np.ones(SHAPE, np.int16)
    back = there_and_back(mask, affine_of(ORIENTATIONS[23]), roi=((2, 3, 4), (11, 26, 9)))
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[2:11, 3:26, 4:9] = 1
    np.testing.assert_array_equal(back, wanted)


def test_an_empty_answer_is_an_empty_label_map():
    assert not there_and_back(np.zeros(SHAPE, np.int16), affine_of(ORIENTATIONS[1]), spacing_mm=2).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">i2", "int32", "float32", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_voxel_type_and_memory_order_is_read(dtype, order):
    mask = (np.random.default_rng(5).random(SHAPE) > 0.5).astype(dtype, order=order)
    np.testing.assert_array_equal(there_and_back(mask, affine_of(ORIENTATIONS[40])), mask)


def test_voxels_that_are_not_numbers_spoil_nothing_around_them():
    field = np.ones(SHAPE, np.float32)
    field[3, 4, 5], field[9, 9, 9], field[15, 2, 2] = np.nan, np.inf, 0
    back = there_and_back(field, affine_of(ORIENTATIONS[8]))
    assert back.sum() == field.size - 3, "they are as dark as the darkest"


def along_ras(orientation, of_ijk):
    """Numbers along i, j, k as they are along R, A, S, by the orientation's own words: axis n runs along order[n]."""
    order, _ = orientation
    numbers = [0.0] * 3
    for axis, patient in enumerate(order):
        numbers[patient] = of_ijk[axis]
    return numbers


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_spacing_for_each_axis_lies_along_the_patients_axes_and_keeps_the_voxels_exactly(orientation):
    edges = (0.7, 1.3, 4.0)
    mask = (np.random.default_rng(4).random(SHAPE) > 0.6).astype(np.int16)
    affine = affine_of(orientation, edges, oblique=9)
    grid = NetworkGrid.fit(SHAPE, affine, spacing_mm=along_ras(orientation, edges), limit=None, divisor=[8, 4, 2])
    assert list(grid.canonical) == along_ras(orientation, SHAPE)
    assert list(grid.padded) == [-(-n // d) * d for n, d in zip(grid.canonical, (8, 4, 2), strict=True)]
    np.testing.assert_array_equal(
        restoration.restore(restoration.log_odds(threshold(grid.from_source(mask))), grid), mask
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_each_axis_is_resampled_by_its_own_step_and_clicks_go_along(orientation):
    shape, edges = (46, 61, 38), (1.0, 1.2, 2.0)
    affine = affine_of(orientation, edges, oblique=7)
    step = (1.4, 3.1, 0.9)
    grid = NetworkGrid.fit(shape, affine, spacing_mm=step, limit=None, divisor=4)
    extent = along_ras(orientation, np.multiply(shape, edges))
    assert list(grid.canonical) == [round(mm / s) for mm, s in zip(extent, step, strict=True)]
    field = ellipsoid(shape, (20.3, 34.6, 17.2), (12, 17, 9))
    back = restoration.restore(restoration.log_odds(threshold(grid.from_source(field), 0.0)), grid)
    shift = np.argwhere(back).mean(axis=0) - np.argwhere(field > 0).mean(axis=0)
    assert np.abs(shift).max() < 0.15, shift
    labels = np.zeros(shape, np.uint8)
    labels[28:33, 38:43, 20:25] = 5
    (place,) = grid.positions([(30, 40, 22)])
    np.testing.assert_allclose(np.argwhere(grid.labels_from_source(labels) == 5).mean(axis=0), place, atol=0.6)


def test_the_largest_part_of_each_structure_stays_and_smaller_ones_go():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[9:11, 9:11, 9:11] = 1
    labels[6:8, 6:8, 6:8] = 3
    kept = restoration.keep_largest_component(labels)
    assert (kept[9:11, 9:11, 9:11] == 0).all()
    assert (kept == 1).sum() == 125
    assert (kept == 3).sum() == 8


def test_every_part_that_was_clicked_stays():
    labels = np.zeros((30, 12, 12), np.uint8)
    labels[1:9, 1:9, 1:9], labels[20:24, 2:6, 2:6], labels[26:28, 2:4, 2:4] = 1, 1, 1
    labels[12:14, 1:3, 1:3] = labels[16:18, 1:3, 1:3] = 2
    kept = restoration.keep_largest_component(labels, [(21, 3, 3), (17, 2, 2), (0, 0, 0)])
    expected = labels.copy()
    expected[26:28] = 0
    np.testing.assert_array_equal(kept, expected)


def test_parts_hang_together_across_edges_and_corners():
    labels = np.zeros((30, 30, 30), np.uint8)
    at = np.arange(30)
    labels[at, at, at] = 1
    np.testing.assert_array_equal(restoration.keep_largest_component(labels), labels)
