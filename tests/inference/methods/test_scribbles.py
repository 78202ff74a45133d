"""Strokes to masks: what was marked holds, the structure is found, whatever the grid, the strokes and their number."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import find_contours

from rayapp.errors import BadRequest, Superseded
from rayapp.imaging.volume import Volume
from rayapp.inference.energy import likelihood
from rayapp.inference.energy.region import Region
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.network.cancellation import interruptible
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from tests.inference.grids import ORIENTATIONS, affine_of, turned, turned_labels

SHAPE = (60, 52, 22)
SPACING = (1.2, 1.4, 3.5)
FITS = {"histogram": likelihood.histogram, "mixture": likelihood.gaussian_mixture, "forest": likelihood.forest}


def scene(seed=0, spacing=SPACING, shape=SHAPE):
    """A bent ellipsoid in tissue, with another bright one beside it: the volume and the truth."""
    rng = np.random.default_rng(seed)
    i, j, k = np.indices(shape)
    across = 26 + 0.02 * (i - 30) ** 2
    truth = ((i - 30) / 17) ** 2 + ((j - across) / 9) ** 2 + ((k - 10) / 6.5) ** 2 < 1
    other = ((i - 30) / 8) ** 2 + ((j - 12) / 4) ** 2 + ((k - 12) / 6) ** 2 < 1
    array = 100 + 120 * truth + 110 * other + 40 * (j > 44) + ndimage.gaussian_filter(rng.normal(0, 40, shape), 0.6)
    affine = affine_of(ORIENTATIONS[17], spacing, 12)
    return Volume(array=np.round(array)[None].astype(np.int16), affine=affine), truth


def drawn(truth, slices):
    """A line through the truth and a ring around it on each slice."""
    marks = np.zeros(truth.shape, np.uint8)
    for k in slices:
        mask = truth[..., k]
        around = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask, iterations=3)
        marks[around, k] = BACKGROUND
        rows = np.flatnonzero(mask.any(axis=1))[3:-3]
        for i in rows:
            marks[i, int(np.flatnonzero(mask[i]).mean()), k] = FOREGROUND
    return marks


def dice(labels, truth):
    return 2 * ((labels == 1) & truth).sum() / ((labels == 1).sum() + truth.sum())


def predict(task, volume, marks=None, config=(), **prompts):
    return task.predict(task.prepare(volume), Prompts(marks=marks, **prompts), dict(config)).labels


def obeyed(labels, marks):
    return (labels[marks == FOREGROUND] == 1).all() and (labels[marks == BACKGROUND] == 0).all()


@pytest.fixture(scope="module", params=list(FITS))
def task(request):
    made = ScribblesTask(fit=FITS[request.param], description=request.param)
    made.load()
    return made


@pytest.fixture(scope="module")
def forest():
    return ScribblesTask(fit=likelihood.forest, description="forest")


@pytest.mark.parametrize("optimiser", ["graph cut", "random walk"])
def test_three_stroked_slices_give_the_structure(task, optimiser):
    volume, truth = scene()
    marks = drawn(truth, (6, 10, 14))
    labels = predict(task, volume, marks, {"optimiser": optimiser})
    assert (labels.shape, labels.dtype) == (SHAPE, np.uint8)
    assert set(np.unique(labels)) == {0, 1}
    assert dice(labels, truth) > 0.9
    assert obeyed(labels, marks)


def test_one_stroke_alone_gives_the_structure(task):
    volume, truth = scene()
    marks = drawn(truth, (10,))
    marks[marks == BACKGROUND] = 0
    labels = predict(task, volume, marks)
    assert obeyed(labels, marks)
    assert dice(labels, truth) > 0.75


def test_a_single_voxel_is_enough_to_answer(task):
    volume, truth = scene()
    marks = np.zeros(SHAPE, np.uint8)
    marks[30, 26, 10] = FOREGROUND
    labels = predict(task, volume, marks)
    assert labels[30, 26, 10] == 1
    assert dice(labels, truth) > 0.5


def test_clicks_alone_are_strokes_too(forest):
    volume, truth = scene()
    clicks = {"foreground": [(30, 26, 10), (20, 28, 10), (40, 28, 10)], "background": [(30, 12, 10), (30, 45, 10)]}
    labels = predict(forest, volume, clicks=clicks)
    assert dice(labels, truth) > 0.75


def test_hundreds_of_wrong_strokes_in_all_directions_are_obeyed(task):
    volume, _ = scene()
    rng = np.random.default_rng(3)
    marks = np.zeros(SHAPE, np.uint8)
    for number in range(300):
        at = rng.integers(0, SHAPE)
        along = int(rng.integers(3))
        line = [slice(n, n + (6 if axis == along else 1)) for axis, n in enumerate(at)]
        marks[tuple(line)] = FOREGROUND if number % 3 else BACKGROUND
    labels = predict(task, volume, marks)
    assert obeyed(labels, marks)


def test_only_what_hangs_on_a_stroke_is_foreground(forest):
    volume, truth = scene()
    marks = drawn(truth, (6, 10, 14))
    parts, _ = ndimage.label(predict(forest, volume, marks))
    assert all((marks[parts == part] == FOREGROUND).any() for part in range(1, parts.max() + 1))


def test_a_background_stroke_takes_the_leak_away(forest):
    volume, truth = scene()
    marks = drawn(truth, (10,))
    marks[marks == BACKGROUND] = 0
    other = np.zeros(SHAPE, bool)
    other[24:37, 10:14, 9:16] = True
    marks[24:37, 12, 12] = BACKGROUND
    labels = predict(forest, volume, marks)
    assert not labels[24:37, 12, 12].any()
    assert labels[other].mean() < 0.1


def test_a_box_alone_is_enough_and_outside_all_is_background(task):
    volume, truth = scene()
    low, high = np.argwhere(truth).min(axis=0) - 2, np.argwhere(truth).max(axis=0) + 3
    roi = (tuple(int(n) for n in low), tuple(int(n) for n in high))
    labels = predict(task, volume, roi=roi)
    outside = np.ones(SHAPE, bool)
    outside[tuple(slice(a, b) for a, b in zip(*roi, strict=True))] = False
    assert not labels[outside].any()
    assert dice(labels, truth) > 0.8


def test_a_box_holds_the_mask_back_and_scribbles_beyond_it_are_not_obeyed(forest):
    volume, truth = scene()
    marks = drawn(truth, (6, 10, 14))
    labels = predict(forest, volume, marks, roi=((0, 0, 8), (30, 52, 12)))
    assert labels[:30, :, 8:12].any()
    assert labels.sum() == labels[:30, :, 8:12].sum()


def test_neither_strokes_nor_box_is_refused(forest):
    with pytest.raises(BadRequest, match="no foreground"):
        predict(forest, scene()[0])


@pytest.mark.parametrize("optimiser", ["magic", 3, ["magic"], {"a": 1}])
def test_an_optimiser_that_is_not_there_is_refused(forest, optimiser):
    volume, truth = scene()
    with pytest.raises(BadRequest, match="graph cut, random walk"):
        predict(forest, volume, drawn(truth, (10,)), {"optimiser": optimiser})


def test_the_answer_has_the_selected_segments_name(forest):
    volume, truth = scene()
    prompts = Prompts(marks=drawn(truth, (10,)), label="lesion")
    assert forest.predict(forest.prepare(volume), prompts, {}).params["label_names"] == {"lesion": 1}


@pytest.mark.parametrize(("order", "flips"), [((2, 0, 1), (True, False, True)), ((1, 2, 0), (False, True, True))])
def test_the_same_strokes_on_a_turned_grid_give_the_same_mask(forest, order, flips):
    volume, truth = scene()
    marks = drawn(truth, (6, 10, 14))
    labels = predict(forest, volume, marks)
    again = predict(forest, turned(volume, order, flips), np.asfortranarray(turned_labels(marks, order, flips)))
    assert dice(again, turned_labels(labels, order, flips) == 1) > 0.97


def test_asking_again_gives_the_same_mask_and_requests_leave_nothing_behind(task):
    volume, truth = scene()
    prepared = task.prepare(volume)
    marks, others = drawn(truth, (6, 10, 14)), drawn(~truth & (np.indices(SHAPE)[1] > 30), (8,))
    first = task.predict(prepared, Prompts(marks=marks), {}).labels
    task.predict(prepared, Prompts(marks=others), {})
    np.testing.assert_array_equal(task.predict(prepared, Prompts(marks=marks), {}).labels, first)


def test_a_structure_larger_than_the_working_grid_is_found_too(forest, monkeypatch):
    monkeypatch.setitem(Region.around.__func__.__kwdefaults__, "max_voxels", 4000)
    volume, truth = scene()
    marks = drawn(truth, (6, 10, 14))
    labels = predict(forest, volume, marks)
    assert obeyed(labels, marks)
    assert dice(labels, truth) > 0.85


def test_strokes_far_from_everything_that_differs_do_not_fail(task):
    volume = Volume(array=np.zeros((1, *SHAPE), np.int16), affine=np.eye(4))
    marks = np.zeros(SHAPE, np.uint8)
    marks[10:20, 10, 5], marks[10:20, 30, 5] = FOREGROUND, BACKGROUND
    assert obeyed(predict(task, volume, marks), marks)


def test_a_flat_image_of_one_slice_is_segmented(task):
    volume, truth = scene()
    flat = Volume(array=volume.array[..., 10:11], affine=volume.affine)
    labels = predict(task, flat, drawn(truth[..., 10:11], (0,)))
    assert dice(labels, truth[..., 10:11]) > 0.9


def test_every_channel_is_looked_at(forest):
    volume, truth = scene()
    blank = np.full_like(volume.array, 50)
    both = Volume(array=np.concatenate([blank, volume.array]), affine=volume.affine)
    assert dice(predict(forest, both, drawn(truth, (6, 10, 14))), truth) > 0.9


@pytest.mark.parametrize("strokes", ["a line", "a dot"])
def test_a_structure_far_larger_than_the_strokes_is_followed_to_its_ends(forest, strokes):
    shape = (120, 110, 7)
    i, j, k = np.indices(shape)
    truth = ((i - 60) / 52) ** 2 + ((j - 55) / 47) ** 2 + ((k - 3) / 3) ** 2 < 1
    noise = np.random.default_rng(5).normal(0, 6, shape)
    volume = Volume(array=(100 + 100 * truth + noise)[None].astype(np.int16), affine=np.diag([1.0, 1.0, 8.0, 1.0]))
    marks = np.zeros(shape, np.uint8)
    marks[58:63, 55, 3] = FOREGROUND
    marks[4, 50 : 60 if strokes == "a line" else 51, 3] = BACKGROUND
    assert dice(predict(forest, volume, marks), truth) > 0.85


def test_a_slice_with_a_curve_is_as_drawn(task):
    volume, truth = scene()
    marks = drawn(truth, (6, 14))
    wrong = np.roll(truth[..., 10], 5, axis=1)
    curve = [(float(i) - 1, float(j) - 1, 10.0) for i, j in find_contours(np.pad(wrong, 1).astype(float), 0.5)[0][:-1]]
    labels = predict(task, volume, marks, curves=[curve])
    np.testing.assert_array_equal(labels[..., 10] == 1, wrong)
    assert obeyed(labels, marks)


def test_a_segmentation_that_nobody_waits_for_ends_before_the_next_slice_and_before_the_volume(task):
    volume, truth = scene()
    prepared = task.prepare(volume)
    slices = sorted(set(np.flatnonzero(truth.any(axis=(0, 1)))[::4]))
    checks = []

    def give_up_at(number):
        checks.append(number)
        if len(checks) == number:
            raise Superseded("given up")

    for number in (2, len(slices) + 2):
        checks.clear()
        with pytest.raises(Superseded), interruptible(lambda number=number: give_up_at(number)):
            task.predict(prepared, Prompts(marks=drawn(truth, slices)), {})
        assert len(checks) == number
