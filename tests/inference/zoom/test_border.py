"""The border of an answer follows the image's own voxels, at any spacing and along any axis, and prompts hold."""

import itertools

import numpy as np
import pytest

from rayapp.inference.zoom import border
from rayapp.inference.zoom.border import drawn
from rayapp.inference.zoom.glance import Glance
from rayapp.inference.zoom.marks import Marks
from rayapp.inference.zoom.view import Source, View
from rayapp.inference.zoom.zoom import rendered

SHAPE, SPACING = (44, 60, 24), np.array([1.1, 0.8, 2.5])
CENTRE, RADII = np.array([22, 27, 30.0]), np.array([13, 10, 16.0])


def ellipsoid(positions):
    """Distance from the structure's centre in its radii; less than 1 inside."""
    return np.sqrt((((positions - CENTRE) / RADII) ** 2).sum(-1))


@pytest.fixture(scope="module")
def source():
    places = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    return Source(np.where(ellipsoid(places) < 1, 160, 60) + noise, SPACING)


@pytest.fixture(scope="module")
def truth():
    return ellipsoid(np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING) < 1


def answer(edge=16, size=48.0, off=1.5):
    """What a network may see of the structure: coarse, blurred, and a little off."""
    view = View.around(CENTRE, size, edge)
    places = view.to_millimetres(np.moveaxis(np.indices((edge,) * 3), 0, -1).astype(float))
    return Glance(view, (12 * (1 - ellipsoid(places + off))).astype(np.float32), 0.8, 32.0)


MARKS = Marks(include=[CENTRE])


def dice(mask, truth):
    inside = mask.whole(truth.shape)
    return 2 * (inside & truth).sum() / (inside.sum() + truth.sum())


def test_a_coarse_answer_gets_the_image_s_border(source, truth):
    coarse = rendered(answer(), source, MARKS)
    assert dice(coarse, truth) < 0.9
    assert dice(drawn(answer(), coarse, source, MARKS), truth) > 0.97


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_border_is_the_same_whichever_way_the_axes_lie(source, order):
    turned = Source(source.array.transpose(order), SPACING[list(order)])
    seen = answer()
    view = View.around(CENTRE[list(order)], seen.view.size, seen.view.edge)
    other = Glance(view, seen.logits.transpose(order), seen.quality, seen.length)
    marks = Marks(include=[CENTRE[list(order)]])
    here = drawn(seen, rendered(seen, source, MARKS), source, MARKS).whole(SHAPE)
    there = drawn(other, rendered(other, turned, marks), turned, marks).whole(turned.array.shape)
    assert (here.transpose(order) != there).mean() < 1e-4  # a cut may have equals


@pytest.mark.parametrize("axis", range(3))
def test_the_border_is_the_same_in_a_mirror(source, axis):
    flipped = Source(np.flip(source.array, axis), SPACING)
    centre = CENTRE.copy()
    centre[axis] = source.extent[axis] - centre[axis]
    seen = answer()
    other = Glance(View.around(centre, seen.view.size, seen.view.edge), np.flip(seen.logits, axis), 0.8, 32.0)
    marks = Marks(include=[centre])
    here = drawn(seen, rendered(seen, source, MARKS), source, MARKS).whole(SHAPE)
    there = drawn(other, rendered(other, flipped, marks), flipped, marks).whole(SHAPE)
    assert (np.flip(here, axis) != there).mean() < 1e-4


def test_a_large_structure_is_cut_coarsely_in_the_same_place(source, truth, monkeypatch):
    coarse = rendered(answer(), source, MARKS)
    monkeypatch.setattr(border, "MOST", 6000)
    mask = drawn(answer(), coarse, source, MARKS)
    assert dice(mask, truth) > 0.94
    middle = (np.argwhere(mask.whole(SHAPE)) * SPACING).mean(0)
    assert np.abs(middle - (np.argwhere(truth) * SPACING).mean(0)).max() < 0.5


def test_points_hold(source):
    outside, inside = CENTRE + np.array([17, 0, 0]), CENTRE + np.array([-6, 2, 0])
    marks = Marks(include=[CENTRE, outside], exclude=[inside])
    mask = drawn(answer(), rendered(answer(), source, marks), source, marks).whole(SHAPE)
    for place, expected in ((outside, True), (inside, False), (CENTRE, True)):
        assert mask[tuple(np.rint(place / SPACING).astype(int))] == expected


def test_what_looks_alike_elsewhere_does_not_join(source, truth):
    array = source.array.copy()
    array[2:6, 50:56, 2:5] = 160
    near = Source(array, SPACING)
    mask = drawn(answer(), rendered(answer(), near, MARKS), near, MARKS).whole(SHAPE)
    assert not mask[2:6, 50:56, 2:5].any()
    assert mask[truth].mean() > 0.95


def test_an_answer_of_a_few_voxels_tells_nothing_of_values_and_stays_as_it_is(source):
    seen = answer()
    tiny = Glance(seen.view, np.where(seen.logits > 10, 2, -9).astype(np.float32), 0.5, 3.0)
    mask = rendered(tiny, source, MARKS)
    assert 0 < mask.inside.sum() < border.FEWEST
    assert drawn(tiny, mask, source, MARKS) is mask


def test_a_faint_answer_does_not_vanish(source):
    seen = answer()
    faint = Glance(seen.view, np.clip(seen.logits, -2, 1.5), 0.4, 32.0)
    flat = Source(np.random.default_rng(2).normal(60, 12, SHAPE), SPACING)
    mask = rendered(faint, flat, MARKS)
    assert drawn(faint, mask, flat, MARKS).inside.sum() >= mask.inside.sum() / 2


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_alone_gets_its_border_too(source, truth, axis):
    at = round(CENTRE[axis] / SPACING[axis])
    flat = Source(source.array.take([at], axis), SPACING)
    centre = CENTRE.copy()
    centre[axis] = 0
    view = View.around(centre, 48.0, 16, flat.column)
    places = view.to_millimetres(np.moveaxis(np.indices((16,) * 3), 0, -1).astype(float))
    places[..., axis] = CENTRE[axis]
    seen = Glance(
        view, (12 * (1 - ellipsoid(places + np.where(np.arange(3) == axis, 0, 1.5)))).astype(np.float32), 0.8, 32.0
    )
    marks = Marks(include=[centre])
    mask = drawn(seen, rendered(seen, flat, marks), flat, marks)
    assert dice(mask, truth.take([at], axis)) > 0.97


@pytest.mark.parametrize("shape", [(61, 40, 50), (20, 20, 17)])
def test_a_part_of_an_image_is_made_coarse_and_fine_in_slabs_as_it_is_at_once(shape):
    random = np.random.default_rng(2)
    step = np.array([3, 1, 2])
    values = random.integers(0, 200, shape).astype(np.uint8)
    coarse = border._coarse(values, step)
    np.testing.assert_array_equal(coarse, border._means(values.astype(np.float32), step))
    assert coarse[0, 0, 0] == pytest.approx(values[:3, 0, :2].mean())
    fine = border._fine(coarse > 100, step, list(shape))
    field = (coarse > 100).astype(np.float32)
    for axis in range(3):
        field = border._between(field, axis, int(step[axis]), np.arange(shape[axis]))
    np.testing.assert_array_equal(fine, field > 0.5)
