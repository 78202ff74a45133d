"""What a network marks comes back on the same voxels of the source, on every grid."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from rayapp.imaging import reader
from rayapp.inference.network import network_grid
from rayapp.inference.network.network_grid import MAX_AXIS, NetworkGrid
from tests.inference.grids import ORIENTATIONS, affine_of

SHAPE = (19, 26, 14)

HIPPOCAMPUS = Path(__file__).parents[4] / "shared" / "data" / "hippocampus"


def threshold(image, level=0.5):
    """Logits (2, …) of a network that marks what is above `level`."""
    image = torch.from_numpy(image)
    return torch.stack([level - image, image - level]).nan_to_num(-1.0)


def there_and_back(array, affine, *, spacing_mm=0.0, limit=None, divisor=8, roi=None, level=0.5):
    grid = NetworkGrid.fit(array.shape, affine, spacing_mm=spacing_mm, limit=limit, divisor=divisor)
    margins = network_grid.margins_of(threshold(grid.from_source(array), level))
    return network_grid.restore(margins, grid, roi=roi)


def ellipsoid(shape, centre, radii):
    """A smooth asymmetric body: positive inside, about one unit a voxel at its surface."""
    at = np.ogrid[tuple(slice(n) for n in shape)]
    depth = 1 - np.sqrt(sum(((x - c) / r) ** 2 for x, c, r in zip(at, centre, radii, strict=True)))
    return (depth * min(radii)).astype(np.float32)


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


def test_turning_agrees_with_an_independent_reader():
    array = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    affine = affine_of(ORIENTATIONS[37], (0.7, 1.3, 4.0), oblique=9)
    grid = NetworkGrid.fit(SHAPE, affine, spacing_mm=0, limit=None, divisor=1)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(grid.from_source(array), canonical.get_fdata(dtype=np.float32))


def test_several_structures_keep_their_values_and_never_mix():
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((4, 16, 16, 16)), (0, 2, 2, 2)))
    affine = affine_of(ORIENTATIONS[11], (1.0, 1.1, 1.7))
    grid = NetworkGrid.fit((48, 40, 30), affine, spacing_mm=4.0, limit=(16, 16, 16), divisor=16)
    logits = smooth.float() * 10
    labels = network_grid.restore(network_grid.margins_of(logits), grid)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    full = network_grid.restore(network_grid.margins_of(logits)[:1], grid)
    np.testing.assert_array_equal(full == 1, labels == 1)  # where 1 leads, no other does


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
    field[3, 4, 5], field[9, 9, 9] = np.nan, np.inf
    back = there_and_back(field, affine_of(ORIENTATIONS[8]))
    assert back.sum() == field.size - 2


def test_a_header_with_absurd_spacing_allocates_no_absurd_grid():
    affine = affine_of(ORIENTATIONS[0], (1e6, 1.0, 1e-6))
    grid = NetworkGrid.fit(SHAPE, affine, spacing_mm=1.0, limit=None, divisor=8)
    assert max(grid.padded) <= MAX_AXIS
    assert min(grid.padded) >= 1


def test_limits_lie_along_patient_axes():
    order, signs = (2, 0, 1), (1.0, -1.0, 1.0)  # i runs along S, j along R, k along A
    grid = NetworkGrid.fit((90, 80, 70), affine_of((order, signs)), spacing_mm=1.0, limit=(40, 48, 56), divisor=8)
    assert grid.padded == (40, 48, 56)
    assert grid.coarse == (56, 40, 48)


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
    assert list(grid.turned) == along_ras(orientation, SHAPE)
    assert list(grid.padded) == [-(-n // d) * d for n, d in zip(grid.turned, (8, 4, 2), strict=True)]
    np.testing.assert_array_equal(
        network_grid.restore(network_grid.margins_of(threshold(grid.from_source(mask))), grid), mask
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_each_axis_is_resampled_by_its_own_step_and_clicks_go_along(orientation):
    shape, edges = (46, 61, 38), (1.0, 1.2, 2.0)
    affine = affine_of(orientation, edges, oblique=7)
    step = (1.4, 3.1, 0.9)
    grid = NetworkGrid.fit(shape, affine, spacing_mm=step, limit=None, divisor=4)
    extent = along_ras(orientation, np.multiply(shape, edges))
    assert list(grid.turned) == [round(mm / s) for mm, s in zip(extent, step, strict=True)]
    field = ellipsoid(shape, (20.3, 34.6, 17.2), (12, 17, 9))
    back = network_grid.restore(network_grid.margins_of(threshold(grid.from_source(field), 0.0)), grid)
    shift = np.argwhere(back).mean(axis=0) - np.argwhere(field > 0).mean(axis=0)
    assert np.abs(shift).max() < 0.15, shift
    labels = np.zeros(shape, np.uint8)
    labels[28:33, 38:43, 20:25] = 5
    (place,) = grid.positions([(30, 40, 22)])
    np.testing.assert_allclose(np.argwhere(grid.labels_from_source(labels) == 5).mean(axis=0), place, atol=0.6)


def test_an_axis_without_a_spacing_keeps_the_sources_voxels():
    order, signs = (2, 0, 1), (1.0, -1.0, 1.0)  # i runs along S, j along R, k along A
    affine = affine_of((order, signs), (0.5, 1.0, 3.0))
    grid = NetworkGrid.fit((90, 80, 20), affine, spacing_mm=(2.0, 0, 1.5), limit=None, divisor=1)
    assert grid.turned == (40, 20, 30)
    assert grid.coarse == (30, 40, 20)


def test_ct_and_mr_are_normalised_alike():
    rng = np.random.default_rng(0)
    body = ellipsoid((40, 40, 40), (20, 20, 20), (15, 12, 16)) > 0
    texture = rng.normal(0, 1, body.shape)
    for scan in (np.where(body, 40 + 60 * texture, -1000), np.where(body, 900 + 300 * texture, 0)):
        inside = network_grid.normalise(scan.astype(np.float32))
        assert inside.min() >= -2
        assert inside.max() <= 2
        assert abs(np.median(inside[body])) < 0.2
        assert 0.4 < inside[body].std() < 0.8


def test_an_image_cropped_to_within_the_body_keeps_its_darker_half():
    texture = np.random.default_rng(0).normal(300, 60, (30, 34, 28)).astype(np.float32)
    inside = network_grid.normalise(texture)
    assert (np.abs(inside) < 2).mean() > 0.99
    assert abs(np.median(inside)) < 0.1


def test_between_air_and_tissue_the_normalisation_has_no_jump():
    rng = np.random.default_rng(0)
    body = ellipsoid((40, 40, 40), (20, 20, 20), (17, 16, 18)) > 0
    noise = rng.normal(0, 1, body.shape)
    before = None
    for spread in range(0, 200, 4):  # of what is around the body: from air to something like it
        scan = np.where(body, 500 + 60 * noise, 100 + spread * noise).astype(np.float32)
        median = float(np.median(network_grid.normalise(scan)[body]))
        assert before is None or abs(median - before) < 0.25
        before = median


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="../shared/data/hippocampus is absent")
def test_hippocampi_are_not_clipped_away():
    for image in sorted(HIPPOCAMPUS.glob("imagesTr/*.nii.gz"))[::20]:
        scan = reader.read_volume(image, max_bytes=1 << 30).array[0].astype(np.float32)
        label = reader.read_segmentation(HIPPOCAMPUS / "labelsTr" / image.name, max_bytes=1 << 30).array
        assert (np.abs(network_grid.normalise(scan)[label > 0]) < 2).mean() > 0.99


def test_an_image_of_one_value_is_normalised_without_dividing_by_nothing():
    assert np.isfinite(network_grid.normalise(np.full((4, 4, 4), 7, np.float32))).all()


def test_the_largest_part_of_each_structure_stays_and_smaller_ones_go():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[9:11, 9:11, 9:11] = 1
    labels[6:8, 6:8, 6:8] = 3
    kept = network_grid.keep_largest(labels)
    assert (kept[9:11, 9:11, 9:11] == 0).all()
    assert (kept == 1).sum() == 125
    assert (kept == 3).sum() == 8
