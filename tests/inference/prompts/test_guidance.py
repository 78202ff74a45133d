"""A click is shown to the network where the annotator clicked."""

import nibabel as nib
import numpy as np
import pytest

from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.guidance import Encoding, GuidedImage, encode
from tests.inference.grids import ORIENTATIONS, affine_of

SHAPE = (19, 26, 14)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_peak_is_on_the_clicked_voxel_on_every_grid(orientation):
    point = (4, 21, 9)
    grid = NetworkGrid.fit(SHAPE, affine_of(orientation, (0.7, 1.3, 4.0), 9), spacing_mm=0, limit=None, divisor=8)
    marked = np.zeros(SHAPE, np.float32)
    marked[point] = 1
    channel = encode([grid.positions([point])], grid.padded)[0]
    assert channel.max() == 1
    assert np.unravel_index(channel.argmax(), channel.shape) == np.unravel_index(
        np.nanargmax(grid.from_source(marked)), grid.padded
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_on_a_resampled_grid_clicks_lie_where_patient_space_says(orientation):
    affine = affine_of(orientation, (0.7, 1.3, 4.0), oblique=9)
    grid = NetworkGrid.fit(SHAPE, affine, spacing_mm=2.1, limit=None, divisor=8)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine))
    for point in ((0, 0, 0), (4, 21, 9), (18, 25, 13)):
        index = np.linalg.inv(canonical.affine) @ affine @ (*point, 1)
        wanted = (index[:3] + 0.5) * grid.canonical / np.array(canonical.shape) - 0.5
        (position,) = grid.positions([point])
        np.testing.assert_allclose(position, wanted, atol=1e-6)
        channel = encode([[position]], grid.padded)[0]
        peak = np.unravel_index(channel.argmax(), channel.shape)
        assert np.abs(np.array(peak) - np.clip(wanted, 0, None)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("encoding", Encoding)
def test_guidance_falls_with_distance_and_ends_at_its_radius(encoding):
    channel = encode([[(10.0, 10.0, 10.0)]], (21, 21, 21), radius=6, encoding=encoding)[0]
    along = channel[10:, 10, 10]
    assert along[0] == 1
    assert (np.diff(along[:7]) < 0).all()
    assert not along[6:].any()
    assert channel[13, 14, 10] == pytest.approx(channel[15, 10, 10])  # 3-4-5: Euclidean


def test_of_several_clicks_the_nearest_counts():
    both = encode([[(3.0, 3.0, 3.0), (8.0, 3.0, 3.0)]], (12, 12, 12), radius=5)[0]
    one, other = (encode([[at]], (12, 12, 12), radius=5)[0] for at in ((3.0, 3.0, 3.0), (8.0, 3.0, 3.0)))
    np.testing.assert_array_equal(both, np.maximum(one, other))


def test_channels_without_clicks_are_empty():
    channels = encode([[], [(1.0, 1.0, 1.0)], []], (4, 4, 4))
    assert channels.shape == (3, 4, 4, 4)
    assert channels.dtype == np.float32
    assert channels.any(axis=(1, 2, 3)).tolist() == [False, True, False]


def test_a_guided_image_is_the_image_followed_by_its_guidance_and_forgets_earlier_clicks():
    image = np.random.default_rng(0).random((2, 9, 8, 7), dtype=np.float32)
    guided = GuidedImage(image, 3)
    for clicks in (
        [[(1.0, 2.5, 3.0)], [], [(4.0, 4.0, 4.0), (8.0, 7.0, 6.0)]],
        [[], [(2.0, 2.0, 2.0)], [(4.0, 4.0, 4.0)]],
        [[], [], []],
    ):
        channels = guided.show(clicks)
        np.testing.assert_array_equal(channels[:2], image)
        np.testing.assert_array_equal(channels[2:], encode(clicks, (9, 8, 7)))
