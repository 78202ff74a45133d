"""CT and MR of any window are normalised to the same range."""

import numpy as np

from rayapp.imaging import reader
from rayapp.inference.network.normalisation import normalise
from tests.inference.grids import ellipsoid
from tests.real_data import real


def test_ct_and_mr_are_normalised_alike():
    rng = np.random.default_rng(0)
    body = ellipsoid((40, 40, 40), (20, 20, 20), (15, 12, 16)) > 0
    texture = rng.normal(0, 1, body.shape)
    for scan in (np.where(body, 40 + 60 * texture, -1000), np.where(body, 900 + 300 * texture, 0)):
        inside = normalise(scan.astype(np.float32))
        assert inside.min() >= -2
        assert inside.max() <= 2
        assert abs(np.median(inside[body])) < 0.2
        assert 0.4 < inside[body].std() < 0.8


def test_an_image_cropped_to_within_the_body_keeps_its_darker_half():
    texture = np.random.default_rng(0).normal(300, 60, (30, 34, 28)).astype(np.float32)
    inside = normalise(texture)
    assert (np.abs(inside) < 2).mean() > 0.99
    assert abs(np.median(inside)) < 0.1


def test_between_air_and_tissue_the_normalisation_has_no_jump():
    rng = np.random.default_rng(0)
    body = ellipsoid((40, 40, 40), (20, 20, 20), (17, 16, 18)) > 0
    noise = rng.normal(0, 1, body.shape)
    before = None
    for spread in range(0, 200, 4):  # of what is around the body: from air to something like it
        scan = np.where(body, 500 + 60 * noise, 100 + spread * noise).astype(np.float32)
        median = float(np.median(normalise(scan)[body]))
        assert before is None or abs(median - before) < 0.25
        before = median


def test_hippocampi_are_not_clipped_away():
    images = sorted(real("hippocampus", "imagesTr").glob("*.nii.gz"))[::20]
    assert images
    for image in images:
        scan = reader.read_volume(image, max_bytes=1 << 30).array[0].astype(np.float32)
        label = reader.read_segmentation(real("hippocampus", "labelsTr", image.name), max_bytes=1 << 30).array
        assert (np.abs(normalise(scan)[label > 0]) < 2).mean() > 0.99


def test_a_voxel_of_a_known_range_is_seen_alike_in_the_whole_image_and_in_a_part():
    image = np.linspace(-1000, 1000, 40**3, dtype=np.float32).reshape(40, 40, 40)
    whole = normalise(image, (-1000, -300))
    np.testing.assert_array_equal(whole[10:20], normalise(image[10:20], (-1000, -300)))
    assert normalise(np.float32([[[-1000, -650, -300, 500, np.nan]]]), (-1000, -300)).ravel().tolist() == [
        -1,
        0,
        1,
        2,
        -2,
    ]


def test_an_image_of_one_value_is_normalised_without_dividing_by_nothing():
    assert np.isfinite(normalise(np.full((4, 4, 4), 7, np.float32))).all()


def test_a_constant_image_is_normalised_although_the_mean_of_its_voxels_may_be_rounded_below_them():
    values = np.float32([0.1, 0.3, 7.7, 153.1])
    images = [np.full((count, 1, 1), value) for count in range(2, 40) for value in values]
    assert any(image.mean() < image.min() for image in images)
    for image in images:
        found = normalise(image)
        assert np.isfinite(found).all()
        assert found.min() == found.max()
