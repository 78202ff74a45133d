"""A view shows the image where it says it does, at any size and spacing, and an answer goes back to the same place."""

import numpy as np
import pytest

from rayapp.inference.zoom.view import Source, View, between, normalised, transfer


def ramp(shape, spacing, axis):
    """An image whose intensity is the position along an axis, in millimetres."""
    along = np.arange(shape[axis]) * spacing[axis]
    return np.broadcast_to(np.moveaxis(along[:, None, None], 0, axis), shape).astype(np.float32)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("size", [20.0, 47.0, 90.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0)])
def test_each_voxel_shows_its_own_place(axis, size, spacing):
    shape = (140, 150, 30) if spacing[2] > 1 else (120, 130, 140)
    source = Source(ramp(shape, spacing, axis), spacing)
    view = View.around((np.array(shape) - 1) * np.array(spacing) / 2, size, 32)
    seen = source.sample(view)
    expected = view.to_millimetres(np.moveaxis(np.indices((32,) * 3), 0, -1).astype(float))[..., axis]
    inner = (expected > 2 * view.spacing) & (expected < source.extent[axis] - 2 * view.spacing - spacing[axis])
    inner &= source.inside(view)
    np.testing.assert_allclose(seen[inner], expected[inner], atol=0.02 * size)


def test_a_coarse_view_averages_and_does_not_alias():
    checkers = np.indices((128, 128, 128)).sum(0) % 2
    seen = Source(checkers.astype(np.float32), (1, 1, 1)).sample(View((64, 64, 64), 120, 16))
    np.testing.assert_allclose(seen, 0.5, atol=0.01)


def test_an_answer_lies_on_the_image_where_it_lay_in_the_view():
    shape, spacing = (60, 70, 20), np.array([1.0, 1.0, 3.0])
    places = np.moveaxis(np.indices(shape), 0, -1) * spacing
    ball = np.linalg.norm(places - (30, 33, 28), axis=-1) < 12
    source = Source(ball.astype(np.float32), spacing)
    view = View((28, 34, 30), 48, 48)
    back = transfer(source.sample(view) - 0.5, view, np.zeros(3), spacing, shape) > 0
    within = np.abs(places - np.array(view.centre)).max(-1) < 23
    overlap = 2 * (back & ball & within).sum() / ((back & within).sum() + (ball & within).sum())
    assert overlap > 0.95


def test_a_mask_seen_in_another_view_is_nothing_where_nobody_looked():
    near, far = View((0, 0, 0), 20, 16), View((0, 0, 0), 80, 16)
    seen = between(np.ones((16,) * 3, np.float32), near, far)
    assert seen[8, 8, 8] == 1
    assert seen[0].max() == 0
    assert seen.mean() == pytest.approx((20 / 80) ** 3, rel=0.2)


def test_beyond_the_image_a_view_is_zero_and_within_it_spans_one_to_minus_one():
    random = np.random.default_rng(0)
    source = Source(random.normal(500, 80, (40, 40, 40)).astype(np.float32), (1, 1, 1))
    view = View((0, 20, 20), 40, 32)
    inside = source.inside(view)
    image = normalised(source.sample(view), inside)
    assert (image[~inside] == 0).all()
    assert image[inside].min() == -1
    assert image[inside].max() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(("shape", "spacing"), [((131, 128, 65), (1, 1, 1)), ((128, 130, 40), (0.7, 0.7, 5))])
def test_coarser_copies_are_means_of_all_their_voxels(dtype, shape, spacing):
    array = np.asfortranarray(np.random.default_rng(3).normal(50, 30, shape).astype(dtype))
    coarse, finer, start = Source(array, spacing)._levels[1]
    halved = np.rint(finer / spacing).astype(int)
    sizes = np.array(shape) // halved
    blocks = array[tuple(slice(size * by) for size, by in zip(sizes, halved, strict=True))].astype(float)
    blocks = blocks.reshape([n for size, by in zip(sizes, halved, strict=True) for n in (size, by)])
    np.testing.assert_allclose(coarse, blocks.mean((1, 3, 5)), rtol=1e-5)
    np.testing.assert_allclose(start, (halved - 1) * np.array(spacing) / 2)
