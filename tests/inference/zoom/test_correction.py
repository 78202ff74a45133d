"""Of a new answer, only what a correction makes likely is taken: along every axis, at any spacing, voxel for voxel."""

import itertools

import numpy as np
import pytest

from rayapp.inference.zoom.correction import Correction, refuted
from rayapp.inference.zoom.glance import Glance, Mask
from rayapp.inference.zoom.marks import Box, Lasso, Marks
from rayapp.inference.zoom.view import Source, View

SHAPE, SPACING = (60, 50, 30), np.array([1.0, 1.3, 2.1])
PLACES = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING
SOURCE = Source(np.zeros(SHAPE, np.int16), SPACING)
CENTRE = np.array([20.0, 30.0, 30.0])


def ball(centre, radius):
    return ((PLACES - centre) ** 2).sum(-1) < radius**2


def whole(inside):
    return Mask(tuple(slice(0, length) for length in inside.shape), inside)


def cropped(inside):
    low, high = np.argwhere(inside).min(0), np.argwhere(inside).max(0) + 1
    region = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return Mask(region, inside[region])


def seen(centre, radius, edge=32, size=70.0):
    """An answer in a view: a ball."""
    view = View.around(CENTRE, size, edge)
    places = view.to_millimetres(np.moveaxis(np.indices((edge,) * 3), 0, -1).astype(float))
    return Glance(view, (radius - np.linalg.norm(places - centre, axis=-1)).astype(np.float32), 0.8, 2 * radius)


BEFORE = ball(CENTRE, 12)


def beside(distance):
    """A position on the first axis."""
    return CENTRE + np.array([distance, 0.0, 0.0])


BESIDE = beside(16)
BUMP = ball(BESIDE, 6) & ~BEFORE
FAR = ball([48, 20, 15], 7)


def test_an_answer_about_something_else_is_doubted():
    correction = Correction(cropped(BEFORE), Marks(include=[BESIDE]), SOURCE)
    assert correction.doubt(seen(CENTRE, 12)) == 0
    assert correction.doubt(seen(beside(2), 13)) == 0
    assert 0.2 < correction.doubt(seen(beside(28), 11)) < 1
    assert correction.doubt(seen(beside(46), 20, size=130.0)) == 1


def test_a_point_far_from_the_answer_may_change_all_of_it():
    away = beside(30)
    correction = Correction(cropped(BEFORE), Marks(include=[away]), SOURCE)
    assert correction.doubt(seen(away, 12)) == 0
    other = ball(away, 12)
    assert (correction.accepted(whole(other)).whole(SHAPE) == other).all()


def test_a_point_deep_in_the_answer_may_take_all_of_it():
    correction = Correction(cropped(BEFORE), Marks(exclude=[CENTRE]), SOURCE)
    other = ball(beside(24), 9)
    assert (correction.accepted(whole(other)).whole(SHAPE) == other).all()


def test_a_small_hole_around_a_point_deep_in_a_leak_is_doubted():
    view = View.around(CENTRE, 70.0, 32)
    places = view.to_millimetres(np.moveaxis(np.indices((32,) * 3), 0, -1).astype(float))
    holed = np.where(np.linalg.norm(places - beside(20), axis=-1) < 5, -1, seen(CENTRE, 28).logits)
    correction = Correction(cropped(ball(CENTRE, 28)), Marks(include=[CENTRE], exclude=[beside(12)]), SOURCE)
    assert correction.doubt(Glance(view, holed.astype(np.float32), 0.8, 56.0)) > 0.5
    assert correction.doubt(seen(CENTRE, 28)) == 1
    assert correction.doubt(seen(beside(-12), 12)) < 0.3


def test_larger_changes_elsewhere_are_not_taken():
    correction = Correction(cropped(BEFORE), Marks(include=[BESIDE]), SOURCE)
    accepted = correction.accepted(whole(BEFORE | BUMP | FAR))
    assert (accepted.whole(SHAPE) == BEFORE | BUMP).all()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("mirrored", [(), (0,), (1, 2)])
def test_what_is_taken_does_not_depend_on_how_the_axes_lie(order, mirrored):
    extent = SOURCE.extent
    at = np.where(np.isin(range(3), mirrored), extent - BESIDE, BESIDE)[list(order)]
    before, after, expected = (
        np.flip(mask, mirrored).transpose(order) for mask in (BEFORE, BEFORE | BUMP | FAR, BEFORE | BUMP)
    )
    source = Source(np.zeros(before.shape, np.int16), SPACING[list(order)])
    accepted = Correction(cropped(before), Marks(include=[at]), source).accepted(cropped(after))
    assert (accepted.whole(before.shape) == expected).all()


def test_what_would_be_lost_elsewhere_stays():
    core = ball(CENTRE, 4)
    rim = BEFORE & ~core
    correction = Correction(cropped(rim), Marks(include=[CENTRE]), SOURCE)
    accepted = correction.accepted(whole(core)).whole(SHAPE)
    assert (accepted == BEFORE).all()


def test_a_smaller_change_elsewhere_is_taken():
    small = ball([48, 20, 15], 4)
    accepted = Correction(cropped(BEFORE), Marks(include=[BESIDE]), SOURCE).accepted(whole(BEFORE | BUMP | small))
    assert (accepted.whole(SHAPE) == BEFORE | BUMP | small).all()


def test_a_leak_at_a_correction_is_taken_around_it_alone():
    near = beside(14)
    leak = ball(beside(26), 13)
    correction = Correction(cropped(BEFORE), Marks(include=[near]), SOURCE)
    accepted = correction.accepted(whole(BEFORE | leak)).whole(SHAPE)
    assert accepted[BEFORE].all()
    assert accepted[tuple(np.rint(near / SPACING).astype(int))]
    assert (accepted & ~BEFORE).sum() < 0.2 * (leak & ~BEFORE).sum()


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (None, Marks(include=[BESIDE])),
        (np.zeros(SHAPE, bool), Marks(include=[BESIDE])),
        (BEFORE, Marks()),
        (BEFORE, Marks(include=[BESIDE], boxes=[Box((0, 0, 0), (50, 50, 50))])),
        (BEFORE, Marks(include=[BESIDE], lassos=[Lasso(2, 30.0, 2.1, np.array([[0, 0], [9, 0], [9, 9.0]]))])),
    ],
    ids=["first", "from nothing", "no prompt", "box", "lasso"],
)
def test_where_nothing_is_corrected_every_change_is_taken(before, told):
    correction = Correction(None if before is None else whole(before), told, SOURCE)
    assert correction.doubt(seen([45, 25, 25], 10)) == 0
    assert (correction.accepted(whole(FAR)).whole(SHAPE) == FAR).all()


@pytest.mark.parametrize("axis", range(3))
def test_on_an_image_of_one_slice_larger_changes_elsewhere_are_not_taken(axis):
    def flat(mask):
        return np.moveaxis(mask[:, :, 14:15], 2, axis)

    spacing = np.insert(SPACING[:2], axis, 8.0)
    source = Source(np.zeros(flat(BEFORE).shape, np.int16), spacing)
    at = np.insert(BESIDE[:2], axis, 0.0)
    blob = ball([50, 12, 29.4], 8)
    accepted = Correction(whole(flat(BEFORE)), Marks(include=[at]), source).accepted(whole(flat(BEFORE | BUMP | blob)))
    assert (accepted.inside == flat(BEFORE | BUMP)).all()


BOXED = Marks(boxes=[Box.of([0, 0, 0], [59, 64, 60])])
TOLD = Marks(exclude=[CENTRE])
HOLED = BEFORE & ~ball(CENTRE, 4)


DENIED = BOXED.plus(TOLD)


def refutes(corrected, marks=DENIED, told=TOLD):
    return refuted(cropped(BEFORE), cropped(corrected), marks, told, SOURCE)


def test_a_box_whose_answer_only_gets_a_hole_in_its_middle_meant_another_structure():
    assert refutes(HOLED)
    assert not refutes(ball(beside(9), 3)), "what was denied is gone"


def test_a_box_whose_answer_is_denied_in_its_middle_again_meant_another_structure():
    again = BOXED.plus(Marks(exclude=[beside(20)])).plus(TOLD)
    assert refutes(ball(beside(9), 3), again)


def test_an_answer_stays_if_it_is_denied_near_its_border_or_holds_what_was_pointed_at():
    edge = Marks(exclude=[beside(10)])
    assert not refutes(BEFORE & ~ball(beside(10), 2), BOXED.plus(edge), edge)
    assert not refutes(HOLED, BOXED.plus(Marks(include=[beside(7)])).plus(TOLD))
    assert not refutes(HOLED, TOLD), "no box"
