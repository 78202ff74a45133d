"""Adaptive zoom believes the view whose answer promises most, and its answers obey the prompts."""

import numpy as np
import pytest

from rayapp.inference.zoom.glance import Glance, Mask, believed, glances, ladder
from rayapp.inference.zoom.marks import Box, Marks
from rayapp.inference.zoom.view import Source, View
from rayapp.inference.zoom.zoom import Optics, outcomes
from rayapp.models.promptable import Channel

SPACING = np.array([1.0, 1.0, 2.0])
SHAPE = (100, 90, 40)
CENTRE = np.array([50.0, 44.0, 40.0])
WHOLE = (slice(0, 100), slice(0, 90), slice(0, 40))


def scene():
    places = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING
    truth = np.linalg.norm(places - CENTRE, axis=-1) < 15
    return Source(np.where(truth, 100.0, 0.0).astype(np.float32), SPACING), truth


def threshold(inputs):
    """A perfect network's answer for a bright ball: its voxels, and how well the ball fits the view."""
    image = inputs[:, Channel.IMAGE]
    share = (image > 0).mean((1, 2, 3))
    touched = np.maximum((image[:, 0] > 0).mean((1, 2)), (image[:, -1] > 0).mean((1, 2)))
    quality = np.where(touched > 0, 0.1, np.minimum(1, 0.3 + share))
    return np.where(image > 0, 5.0, -5.0).astype(np.float32), quality, np.full(len(image), 0.5)


def dice(mask, truth):
    whole = mask.whole(SHAPE)
    return 2 * (whole & truth).sum() / (whole.sum() + truth.sum())


def test_a_click_is_answered_at_the_size_of_the_structure():
    source, truth = scene()
    coarse, fine = outcomes(threshold, source, Marks(include=[CENTRE]))
    assert dice(coarse.mask, truth) > 0.8
    assert dice(fine.mask, truth) > 0.93


def test_views_grow_from_the_prompts_to_the_image():
    source, _ = scene()
    views = ladder(source, Marks(include=[CENTRE]), 32, 6)
    sizes = [view.size for view in views]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(12)
    assert sizes[-1] >= source.extent.max()


def test_after_an_answer_views_have_about_its_size():
    source, _ = scene()
    sizes = [view.size for view in ladder(source, Marks(include=[CENTRE]), 16, 3, near=40.0)]
    assert np.allclose(sizes, [20, 40, 80])
    sizes = [view.size for view in ladder(source, Marks(include=[CENTRE]), 16, 3, near=90.0)]
    assert sizes[-1] == pytest.approx(100)


def test_an_answer_that_misses_a_point_is_believed_less():
    source, _ = scene()
    marks = Marks(include=[CENTRE])
    answers = glances(threshold, source, ladder(source, marks, 32, 5), marks)
    away = Marks(include=[CENTRE + np.array([0, 30, 0])])
    assert (believed(answers, away)[1:] < believed(answers, marks)[1:]).all()


def test_a_view_that_is_sure_of_itself_one_way_round_only_is_not_believed():
    source, _ = scene()
    marks = Marks(include=[CENTRE])
    views = ladder(source, marks, 32, 6)

    def sure(inputs):
        logits, quality, length = threshold(inputs)
        if len(inputs) == len(views):
            quality[-1] = 0.99
        return logits, quality, length

    plain, doubted = (glances(sure, source, views, marks, doubt=doubt) for doubt in (False, True))
    assert believed(plain, marks).argmax() == len(views) - 1
    assert believed(doubted, marks).argmax() == believed(glances(threshold, source, views, marks), marks).argmax()
    assert max(answer.quality for answer in doubted[:-1]) >= doubted[-1].quality


def test_a_box_is_respected_and_points_are_obeyed():
    source, _ = scene()
    box = Box((40, 30, 31), (60, 60, 49))
    exclude = np.array([50.0, 44, 40])
    include = np.array([41.0, 31, 34])
    *_, last = outcomes(threshold, source, Marks(include=[include], exclude=[exclude], boxes=[box]))
    whole = last.mask.whole(SHAPE)
    marked = np.argwhere(whole) * SPACING
    assert (marked >= np.array(box.low)).all()
    assert (marked <= np.array(box.high)).all()
    assert whole[tuple(np.rint(include / SPACING).astype(int))]
    assert not whole[tuple(np.rint(exclude / SPACING).astype(int))]


def test_of_several_parts_those_with_points_stay():
    logits = np.full((32,) * 3, -3, np.float32)
    logits[4:16, 4:16, 4:16] = 3
    logits[24:27, 24:27, 24:27] = 3
    glance = Glance(View((50, 50, 50), 64, 32), logits, 0.5, 10)
    kept = glance.connected(glance.view.to_millimetres(np.array([[25.0, 25, 25]]))).logits > 0
    assert kept[25, 25, 25]
    assert not kept[10, 10, 10]
    largest = glance.connected(np.zeros((0, 3))).logits > 0
    assert largest[10, 10, 10]
    assert not largest[25, 25, 25]


def test_a_mask_to_start_from_is_seen_where_it_lies():
    region = (slice(40, 60), slice(30, 60), slice(15, 25))
    mask = Mask(region, np.ones((20, 30, 10), bool))
    bounds = mask.bounds(SPACING)
    assert bounds == Box((39.5, 29.5, 29.0), (59.5, 59.5, 49.0))
    views = ladder(Source(np.zeros(SHAPE, np.float32), SPACING), Marks(boxes=[bounds]), 32, 1)
    seen = mask.sample(views[0], SPACING)
    volume = seen.sum() * views[0].spacing ** 3
    assert volume == pytest.approx(20 * 30 * 20, rel=0.1)


def test_optics_decide_how_many_voxels_are_looked_at():
    source, _ = scene()
    edges = []

    def ask(inputs):
        edges.append(inputs.shape[-1])
        return threshold(inputs)

    box = Marks(boxes=[Box.of(CENTRE - 16, CENTRE + 16)])
    list(outcomes(ask, source, box, optics=Optics(coarse=16, fine=48, looks=3)))
    assert edges == [16, 16, 48, 48, 48], "of the views, of the best of them mirrored, and of each closer look"
    edges.clear()
    list(outcomes(ask, source, Marks(include=[CENTRE]), optics=Optics(coarse=16, fine=48, looks=3)))
    assert edges == [16, 16, 48], "without a box there is one closer look"
    edges.clear()
    before = Mask((slice(40, 60), slice(34, 54), slice(15, 25)), np.ones((20, 20, 10), bool))
    list(outcomes(ask, source, Marks(include=[CENTRE]), before, optics=Optics(coarse=16, fine=64, again=48)))
    assert edges[-1] == 48, "from a mask on it looks again"


def test_an_answer_that_gives_up_the_mask_before_is_believed_less():
    source, truth = scene()
    marks = Marks(include=[CENTRE])
    answers = glances(threshold, source, ladder(source, marks, 32, 5), marks)
    kept, lost = Mask(WHOLE, truth), Mask(WHOLE, np.roll(truth, 40, 0))
    usual = believed(answers, marks)
    assert believed(answers, marks, kept, SPACING)[2] == pytest.approx(usual[2], abs=0.05)
    assert (believed(answers, marks, lost, SPACING) < usual - 0.1).all()


def test_a_click_beside_an_answer_does_not_exchange_it_for_something_else():
    source, truth = scene()
    beside = CENTRE + np.array([18.0, 0, 0])
    marks = Marks(include=[CENTRE, beside])

    def other(inputs):
        logits, quality, length = threshold(inputs)
        return -logits, quality, length

    *_, last = outcomes(other, source, marks, Mask(WHOLE, truth), told=Marks(include=[beside]))
    assert dice(last.mask, truth) > 0.8
    assert last.mask.whole(SHAPE)[tuple(np.rint(beside / SPACING).astype(int))]
    *_, last = outcomes(other, source, Marks(include=[CENTRE]))
    assert dice(last.mask, truth) < 0.1


def test_a_closer_look_that_promises_less_does_not_correct_an_answer():
    source, truth = scene()

    def unsure(inputs):
        logits, quality, length = threshold(inputs)
        closer = inputs.shape[-1] == Optics().again
        return (0 * logits - 1, quality / 10, length) if closer else (logits, quality, length)

    marks = Marks(include=[CENTRE])
    *_, last = outcomes(unsure, source, marks, Mask(WHOLE, truth))
    assert dice(last.mask, truth) > 0.9


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("thickness", [0.5, 8.0])
def test_an_image_of_one_slice_is_segmented_whichever_axis_it_lies_across(axis, thickness):
    image, truth, places = slice_of_a_ball()
    spacing = np.insert([1.0, 2.0], axis, thickness)
    source = Source(np.expand_dims(image, axis), spacing)
    *_, last = outcomes(threshold, source, Marks(include=[np.insert(places, axis, 0.0)]))
    found = last.mask.whole(source.array.shape).squeeze(axis)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
    assert found[50, 22]


@pytest.mark.parametrize("axis", range(3))
def test_a_box_on_an_image_of_one_slice_holds_as_one_in_a_volume_does(axis):
    image, _, _ = slice_of_a_ball()
    spacing = np.insert([1.0, 2.0], axis, 3.0)
    source = Source(np.expand_dims(image, axis), spacing)
    low, high = np.insert([34.5, 25.0], axis, -1.5), np.insert([49.5, 63.0], axis, 1.5)
    *_, last = outcomes(threshold, source, Marks(boxes=[Box.of(low, high)]))
    found = last.mask.whole(source.array.shape).squeeze(axis)
    assert found[40, 22]
    found[35:50, 13:32] = False
    assert not found.any()


def slice_of_a_ball():
    """A bright disc (i, j) in voxels of 1 x 2 mm, where it is, and its centre in millimetres."""
    places = np.moveaxis(np.indices((100, 45)), 0, -1) * [1.0, 2.0]
    truth = np.linalg.norm(places - [50.0, 44.0], axis=-1) < 15
    return np.where(truth, 100.0, 0.0).astype(np.float32), truth, np.array([50.0, 44.0])


def test_the_mask_before_is_seen_at_every_height_of_a_column():
    source = Source(np.zeros((40, 30, 1), np.float32), (1.0, 1.0, 4.0))
    view = View.around(np.array([20.0, 15, 0]), 24.0, 16, source.column)
    mask = Mask((slice(10, 30), slice(5, 25), slice(0, 1)), np.ones((20, 20, 1), bool))
    seen = mask.sample(view, source.spacing)
    np.testing.assert_allclose(seen, seen[:, :, :1] * np.ones(16))
    assert seen[8, 8, 0] == pytest.approx(1)
    assert source.inside(view).all(2).sum() == source.inside(view).any(2).sum()
