"""A few drawn slices to a volume: exact where drawn, following the structure in between."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import find_contours

from rayapp.errors import BadRequest
from rayapp.inference.energy import likelihood
from rayapp.inference.methods.closed_curves import ClosedCurvesTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from tests.inference.grids import turned, turned_labels
from tests.inference.methods.test_scribbles import SHAPE, dice, predict, scene


@pytest.fixture(scope="module")
def task():
    return ClosedCurvesTask(fit=likelihood.forest, description="curves")


def curves(truth, slices, axis=2):
    """The outlines of the truth on some slices across an axis, between voxel centres, as polygons."""
    drawn = []
    for index in slices:
        for outline in find_contours(np.pad(truth.take(index, axis), 1).astype(float), 0.5):
            drawn.append([tuple(np.insert(point - 1, axis, index).tolist()) for point in outline[:-1]])
    return drawn


def painted(truth, slices):
    marks = np.zeros(truth.shape, np.uint8)
    marks[..., slices] = FOREGROUND * truth[..., slices]
    return marks


def test_curves_on_three_slices_give_the_structure(task):
    volume, truth = scene()
    labels = predict(task, volume, curves=curves(truth, (5, 10, 15)))
    assert dice(labels, truth) > 0.93


def test_drawn_slices_are_as_drawn_whatever_the_image_shows(task):
    volume, truth = scene()
    wrong = np.roll(truth, 7, axis=1)
    labels = predict(task, volume, curves=curves(wrong, (6, 12)))
    for k in (6, 12):
        np.testing.assert_array_equal(labels[..., k] == 1, wrong[..., k])


def test_painted_slices_are_curves_too(task):
    volume, truth = scene()
    outlined = predict(task, volume, curves=curves(truth, (5, 10, 15)))
    np.testing.assert_array_equal(predict(task, volume, painted(truth, [5, 10, 15])), outlined)


def test_a_painted_wall_stays_a_wall(task):
    volume, truth = scene()
    marks = painted(truth, [5, 10, 15])
    for k in (5, 10, 15):
        marks[ndimage.binary_erosion(truth[..., k], iterations=3), k] = 0
    labels = predict(task, volume, marks)
    np.testing.assert_array_equal(labels[..., (5, 10, 15)] == 1, marks[..., (5, 10, 15)] == FOREGROUND)


def test_an_inner_curve_is_the_border_of_a_lumen(task):
    volume, truth = scene()
    lumen = ndimage.binary_erosion(truth, np.ones((5, 5, 1)))
    labels = predict(task, volume, curves=[*curves(truth, (5, 10, 15)), *curves(lumen, (5, 10, 15))])
    np.testing.assert_array_equal(labels[..., (5, 10, 15)] == 1, (truth & ~lumen)[..., (5, 10, 15)])


def test_strokes_and_clicks_in_curves_keep_their_mark(task):
    volume, truth = scene()
    marks = np.zeros(SHAPE, np.uint8)
    marks[25:30, 26, 10], marks[2:5, 3, 10] = BACKGROUND, FOREGROUND
    labels = predict(
        task, volume, marks, curves=curves(truth, (5, 10, 15)), clicks={"foreground": [(25, 26, 10), (30, 27, 8)]}
    )
    expected = truth[..., 10] & (marks[..., 10] != BACKGROUND) | (marks[..., 10] == FOREGROUND)
    expected[25, 26] = True
    np.testing.assert_array_equal(labels[..., 10] == 1, expected)
    assert np.count_nonzero(labels[..., 8] == 1) > 100, "a click draws no slice"


def test_the_image_decides_between_the_slices(task):
    """Interpolation of shape alone would go straight where the structure bends."""
    volume, truth = scene()
    labels = predict(task, volume, curves=curves(truth, (5, 15)))
    assert dice(labels[..., 8:13], truth[..., 8:13]) > 0.93


def test_curves_on_slices_along_another_axis_are_found(task):
    volume, truth = scene()
    order, flips = (2, 0, 1), (True, False, True)
    again = turned_labels(truth, order, flips)
    drawn = [SHAPE[2] - 1 - k for k in (5, 10, 15)]
    labels = predict(task, turned(volume, order, flips), curves=curves(again, drawn, axis=0))
    assert dice(labels, again) > 0.93
    np.testing.assert_array_equal(labels[drawn] == 1, again[drawn])


def test_no_curve_is_refused(task):
    with pytest.raises(BadRequest, match="no foreground"):
        predict(task, scene()[0], np.zeros(SHAPE, np.uint8))
