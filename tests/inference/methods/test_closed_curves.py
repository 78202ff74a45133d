"""A few drawn slices to a volume: exact where drawn, following the structure in between."""

import numpy as np
import pytest
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.inference.energy import likelihood
from rayapp.inference.methods.closed_curves import ClosedCurvesTask
from rayapp.inference.prompts.scribble_map import FOREGROUND
from tests.inference.grids import turned, turned_labels
from tests.inference.methods.test_scribbles import SHAPE, dice, predict, scene


@pytest.fixture(scope="module")
def task():
    return ClosedCurvesTask(fit=likelihood.forest, description="curves")


def curves(truth, slices):
    """The outline of the truth on each slice, a voxel wide."""
    marks = np.zeros(truth.shape, np.uint8)
    for k in slices:
        marks[..., k][truth[..., k] & ~ndimage.binary_erosion(truth[..., k])] = FOREGROUND
    return marks


def test_curves_on_three_slices_give_the_structure(task):
    volume, truth = scene()
    labels = predict(task, volume, curves(truth, (5, 10, 15)))
    assert dice(labels, truth) > 0.93


def test_drawn_slices_are_as_drawn_whatever_the_image_shows(task):
    volume, truth = scene()
    wrong = np.roll(truth, 7, axis=1)
    labels = predict(task, volume, curves(wrong, (6, 12)))
    for k in (6, 12):
        np.testing.assert_array_equal(labels[..., k] == 1, wrong[..., k])


def test_painted_slices_are_curves_too(task):
    volume, truth = scene()
    painted = np.zeros(SHAPE, np.uint8)
    painted[..., (5, 10, 15)] = FOREGROUND * truth[..., (5, 10, 15)]
    np.testing.assert_array_equal(predict(task, volume, painted), predict(task, volume, curves(truth, (5, 10, 15))))


def test_the_image_decides_between_the_slices(task):
    """Interpolation of shape alone would go straight where the structure bends."""
    volume, truth = scene()
    labels = predict(task, volume, curves(truth, (5, 15)))
    assert dice(labels[..., 8:13], truth[..., 8:13]) > 0.93


def test_curves_on_slices_along_another_axis_are_found(task):
    volume, truth = scene()
    order, flips = (2, 0, 1), (True, False, True)
    marks = np.asfortranarray(turned_labels(curves(truth, (5, 10, 15)), order, flips))
    labels = predict(task, turned(volume, order, flips), marks)
    again = turned_labels(truth, order, flips)
    assert dice(labels, again) > 0.93
    drawn = np.flatnonzero(marks.any(axis=(1, 2)))
    np.testing.assert_array_equal(labels[drawn] == 1, again[drawn])


def test_no_curve_is_refused(task):
    with pytest.raises(BadRequest, match="no foreground"):
        predict(task, scene()[0], np.zeros(SHAPE, np.uint8))
