"""The phantoms are reproducible, realistic in size, asymmetric, and lie on every kind of grid."""

import nibabel as nib
import numpy as np
import pytest

from rayapp.imaging.phantom import ORGANS, phantom

SMALL = (48, 52, 40)


def world_centroid(segmentation, value):
    index = np.argwhere(segmentation.array == value).mean(axis=0)
    return segmentation.affine[:3, :3] @ index + segmentation.affine[:3, 3]


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another():
    (first, labels), (again, same), (other, _) = (phantom(seed, shape=SMALL) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.array, again.array)
    np.testing.assert_array_equal(labels.array, same.array)
    np.testing.assert_array_equal(first.affine, again.affine)
    assert not np.array_equal(first.array, other.array)


def test_image_and_labels_share_a_grid_and_their_types_are_those_of_files():
    volume, labels = phantom(1, shape=SMALL)
    assert volume.array.shape == (1, *SMALL)
    assert labels.array.shape == SMALL
    assert volume.array.dtype == np.int16
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.affine, labels.affine)


@pytest.mark.parametrize("seed", range(4))
def test_every_organ_is_there_with_contiguous_values(seed):
    _, labels = phantom(seed, shape=SMALL)
    assert labels.names == ORGANS
    assert set(np.unique(labels.array)) == {0, *range(1, len(ORGANS) + 1)}


def test_default_sizes_are_those_of_the_demo():
    volume, _ = phantom(0)
    i, j, k = volume.shape
    assert 128 <= i <= 160
    assert 128 <= j <= 160
    assert 64 <= k <= 96


@pytest.mark.parametrize("seed", range(4))
def test_organs_lie_on_their_sides_in_patient_space_however_the_grid_is_turned(seed):
    _, labels = phantom(seed, shape=SMALL)
    at = {name: world_centroid(labels, value) for name, value in ORGANS.items()}
    assert at["liver"][0] > at["spleen"][0] + 80  # R is +x
    assert at["right_kidney"][0] > at["left_kidney"][0] + 60
    assert at["stomach"][1] > at["spleen"][1]  # A is +y
    assert at["liver"][2] > at["right_kidney"][2]  # S is +z


def test_grids_are_permuted_flipped_oblique_and_anisotropic():
    affines = [phantom(seed, shape=(24, 26, 20))[0].affine for seed in range(12)]
    assert len({nib.aff2axcodes(affine) for affine in affines}) >= 8
    spacings = [np.linalg.norm(affine[:3, :3], axis=0) for affine in affines]
    assert all(spacing.max() / spacing.min() > 1.02 for spacing in spacings)
    assert any(
        (np.abs(affine[:3, :3] / spacing) < 0.995).all() for affine, spacing in zip(affines, spacings, strict=True)
    )


def test_intensities_are_those_of_a_ct():
    volume, labels = phantom(2, shape=SMALL)
    image = volume.array[0]
    assert image.min() >= -1024
    assert image.max() > 200
    assert 60 < image[labels.array == ORGANS["liver"]].mean() < 160
    assert (image < -900).mean() > 0.1
