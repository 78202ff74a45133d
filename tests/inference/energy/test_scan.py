"""The slices that were drawn on are known from all strokes on them."""

import numpy as np
import pytest

from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.energy.scan import drawing_axis
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND

SHAPE = (30, 34, 38)


def drawn(axis, *, ring):
    """A few voxels of a thin, slanting structure on three slices across an axis, with a ring around each or without."""
    marks = np.zeros(SHAPE, np.uint8)
    for number, index in enumerate((6, 11, 17)):
        plane = np.moveaxis(marks, axis, 0)[index]
        at = 12 + number
        if ring:
            plane[at - 6 : at + 7, at - 6 : at + 7] = BACKGROUND
            plane[at - 5 : at + 6, at - 5 : at + 6] = 0
        plane[at, at : at + 2] = FOREGROUND
    return SparseLabels.of(marks)


@pytest.mark.parametrize("axis", range(3))
def test_of_a_thin_structure_the_strokes_around_it_say_which_slices_are_drawn_on(axis):
    assert drawing_axis(drawn(axis, ring=True), np.ones(3)) == axis


@pytest.mark.parametrize("axis", range(3))
def test_of_equals_the_slices_that_lie_furthest_apart_are_drawn_on(axis):
    spacing = np.ones(3)
    spacing[axis] = 2.0
    assert drawing_axis(drawn(axis, ring=False), spacing) == axis
