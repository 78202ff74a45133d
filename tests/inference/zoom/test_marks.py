"""Prompts are drawn in a view where they were given, each in a channel of its own."""

import numpy as np
import pytest

from rayapp.inference.zoom.marks import Box, Lasso, Marks, channels
from rayapp.inference.zoom.view import View
from rayapp.models.promptable import Channel

VIEW = View((50.0, 50.0, 50.0), 64.0, 32)
IMAGE = np.random.default_rng(0).uniform(-1, 1, (32,) * 3).astype(np.float32)


def centre_of(channel):
    return VIEW.to_millimetres(np.argwhere(channel > 0).mean(0))


def test_a_point_is_a_ball_around_its_place():
    place = np.array([41.0, 57.0, 63.0])
    drawn = channels(VIEW, IMAGE, Marks(include=[place], exclude=[place + 10]))
    np.testing.assert_allclose(centre_of(drawn[Channel.INCLUDE]), place, atol=1)
    np.testing.assert_allclose(centre_of(drawn[Channel.EXCLUDE]), place + 10, atol=1)
    assert (drawn[Channel.INCLUDE] > 0).sum() == 33


def test_a_point_beyond_the_view_is_not_drawn():
    drawn = channels(VIEW, IMAGE, Marks(include=[np.array([500.0, 50, 50])]))
    assert not drawn[Channel.INCLUDE].any()


def test_a_box_on_one_slice_is_a_slab_of_one_voxel_however_thin_the_slice():
    drawn = channels(VIEW, IMAGE, Marks(boxes=[Box((30, 35, 49.6), (60, 65, 50.4))]))[Channel.BOX]
    assert [len(np.flatnonzero(drawn.any(axes))) for axes in ((1, 2), (0, 2), (0, 1))] == [15, 15, 1]


@pytest.mark.parametrize("axis", range(3))
def test_a_lasso_is_filled_on_its_slice(axis):
    curve = np.array([[40.0, 40.0], [40.0, 60.0], [60.0, 60.0], [60.0, 40.0]])
    drawn = channels(VIEW, IMAGE, Marks(lassos=[Lasso(axis, 50.0, 4.0, curve)]))[Channel.LASSO]
    filled = np.moveaxis(drawn, axis, 0).any((1, 2))
    assert filled.sum() == 2
    assert 81 <= np.moveaxis(drawn, axis, 0)[filled][0].sum() <= 121


def test_a_stroke_has_no_gaps_in_a_view_closer_than_its_places():
    line = np.stack([np.arange(40, 60, 2.0), np.full(10, 50.0), np.full(10, 50.0)], 1)
    close = View((50.0, 50.0, 50.0), 24.0, 48)
    drawn = channels(close, np.zeros((48,) * 3, np.float32), Marks(strokes=[line], pitch=2.0))[Channel.STROKE]
    along = np.flatnonzero(drawn.any((1, 2)))
    assert len(along) == along[-1] - along[0] + 1


def test_the_image_seen_from_the_prompts_is_zero_on_their_tissue():
    image = np.where(np.indices((32,) * 3)[0] < 16, -0.6, 0.4).astype(np.float32)
    seen = channels(VIEW, image, Marks(include=[np.array([30.0, 50, 50])]))[Channel.SEEN]
    np.testing.assert_allclose(seen[:16], 0, atol=1e-6)
    assert seen[16:].min() > 0.5


def test_an_inverted_image_is_seen_inverted_from_the_prompts():
    marks = Marks(include=[np.array([45.0, 50, 50])])
    np.testing.assert_allclose(
        channels(VIEW, IMAGE, marks)[Channel.SEEN], -channels(VIEW, -IMAGE, marks)[Channel.SEEN], atol=1e-6
    )


def test_soft_tissues_differ_near_the_prompts_beside_bone_and_air():
    image = np.full((32,) * 3, -1.0, np.float32)  # air, a body of soft tissue with bone, and an organ a little brighter
    image[4:28] = 0.0
    image[4:28, :8] = image[:, :, 21:] = 1.0
    image[:, :, :11] = -1.0
    organ = (slice(12, 20),) * 3
    image[organ] = 0.04
    image += np.random.default_rng(1).normal(0, 0.005, image.shape).astype(np.float32)
    drawn = channels(VIEW, image, Marks(include=[VIEW.to_millimetres(np.array([15.5, 15.5, 15.5]))]))
    beside = (slice(12, 20), slice(22, 28), slice(12, 20))
    assert np.abs(drawn[Channel.NEAR][organ]).mean() < 0.35
    assert drawn[Channel.NEAR][beside].mean() < -0.6
    assert drawn[Channel.SEEN][beside].mean() > -0.2, "the wide scale hides them"


@pytest.mark.parametrize("marks", [Marks(), Marks(boxes=[Box((30, 35, 45), (60, 65, 60))])], ids=["nothing", "a box"])
def test_the_image_near_the_prompts_is_finite_and_inverts_with_the_image(marks):
    near = channels(VIEW, IMAGE, marks)[Channel.NEAR]
    assert np.abs(near).max() <= 1
    assert np.isfinite(channels(VIEW, np.zeros_like(IMAGE), marks)).all()


def test_prompts_bounds_hold_points_strokes_boxes_and_lassos():
    marks = Marks(
        include=[np.array([1.0, 50, 50])],
        strokes=[np.array([[50.0, 2, 50]])],
        boxes=[Box((40, 40, 40), (99, 60, 60))],
        lassos=[Lasso(2, 70.0, 2.0, np.array([[45.0, 45], [55, 45], [50, 80]]))],
    )
    bounds = marks.bounds()
    assert bounds == Box((1, 2, 40), (99, 80, 71))
    assert Marks(exclude=[np.zeros(3)]).bounds() is None
