"""The structure in a box is found wherever in the box it lies, on any grid."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from rayapp.imaging.volume import Volume
from rayapp.inference.energy import box_fit, likelihood
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.prompts.scribble_map import FOREGROUND
from tests.inference.grids import ORIENTATIONS, affine_of

SHAPE = (58, 50, 24)
SPACING = (1.3, 1.6, 3.0)


def crescent():
    """The outer shell of a ball on one side, as a spleen lies around a stomach, and the ball in it."""
    i, j, k = np.indices(SHAPE)
    far = np.sqrt(((i - 25) / 17) ** 2 + ((j - 25) / 15) ** 2 + ((k - 12) / 9) ** 2)
    return (far < 1) & (far > 0.62) & (i + j / 2 > 40), far < 0.5


def scene(orientation=ORIENTATIONS[21]):
    """The crescent, a ball of other tissue in the middle of its box, and beyond the box more like the ball."""
    truth, ball = crescent()
    noise = ndimage.gaussian_filter(np.random.default_rng(4).normal(0, 30, SHAPE), 0.6)
    array = 60 + 140 * truth + 70 * ball + noise
    array[:6] += 70
    return Volume(array=np.round(array)[None].astype(np.int16), affine=affine_of(orientation, SPACING, 7)), truth


def around(truth, margin=1):
    low, high = np.argwhere(truth).min(axis=0) - margin, np.argwhere(truth).max(axis=0) + 1 + margin
    return tuple(int(n) for n in np.maximum(low, 0)), tuple(int(n) for n in np.minimum(high, SHAPE))


def fitted(scan, box):
    """The structure that fits a box, and its core, on the whole image."""
    for mask in box_fit.fit_box(scan, box):
        whole = np.zeros(scan.shape, bool)
        whole[tuple(slice(a, b) for a, b in zip(*box, strict=True))] = mask
        yield whole


def dice(labels, truth):
    return 2 * ((labels == 1) & truth).sum() / ((labels == 1).sum() + truth.sum())


@pytest.mark.parametrize("orientation", ORIENTATIONS[::11])
def test_a_curved_structure_is_found_and_not_the_middle_of_its_box(orientation):
    volume, truth = scene(orientation)
    low, high = around(truth)
    middle = tuple((a + b) // 2 for a, b in zip(low, high, strict=True))
    part, inner = fitted(Scan.of(volume), (low, high))
    assert not truth[middle]
    assert not part[middle]
    assert dice(part, truth) > 0.8
    assert inner.sum() > 50
    assert (truth & part)[inner].all()


def test_where_all_looks_alike_nothing_fails():
    flat = Scan.of(Volume(array=np.zeros((1, *SHAPE), np.int16), affine=np.eye(4)))
    for box in (((10, 10, 4), (20, 30, 9)), ((0, 0, 0), SHAPE), ((3, 4, 5), (4, 5, 6))):
        outside = np.ones(SHAPE, bool)
        outside[tuple(slice(a, b) for a, b in zip(*box, strict=True))] = False
        labels = ScribblesTask(fit=likelihood.forest, description="").predict(flat, Prompts(roi=box), {}).labels
        assert not labels[outside].any()
        assert labels.any()


def test_a_box_larger_than_what_is_looked_at_is_seen_coarsely(monkeypatch):
    volume, truth = scene()
    monkeypatch.setattr(box_fit, "MAX_VOXELS", 6000)
    part, inner = fitted(Scan.of(volume), around(truth))
    assert dice(part, truth) > 0.6
    assert truth[inner].mean() > 0.8


def test_where_there_is_a_stroke_on_the_structure_nothing_is_guessed_from_the_box(monkeypatch):
    volume, truth = scene()
    monkeypatch.setattr(box_fit, "fit_box", None)
    marks = np.zeros(SHAPE, np.uint8)
    marks[tuple(np.argwhere(truth)[::20].T)] = FOREGROUND
    task = ScribblesTask(fit=likelihood.forest, description="")
    labels = task.predict(task.prepare(volume), Prompts(marks=marks, roi=around(truth)), {}).labels
    assert dice(labels, truth) > 0.7


def on_slice(truth, axis):
    """The structure on the slice across an axis that shows most of it, and that slice's index."""
    index = int(truth.sum(axis=tuple(other for other in range(3) if other != axis)).argmax())
    flat = np.zeros_like(truth)
    flat[(slice(None),) * axis + (index,)] = truth.take(index, axis)
    return flat, index


def four_ends(flat, axis):
    voxels = np.argwhere(flat)
    across = [other for other in range(3) if other != axis]
    return [
        tuple(int(n) for n in voxels[voxels[:, other].argsort(kind="stable")[e]]) for other in across for e in (0, -1)
    ]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("prompt", ["box", "ends"])
def test_prompts_on_one_slice_give_what_that_slice_alone_as_an_image_gives(axis, prompt):
    volume, truth = scene()
    flat, index = on_slice(truth, axis)
    scan = Scan.of(volume)
    cut = (slice(None),) * axis + (slice(index, index + 1),)
    alone = dataclasses.replace(scan, array=scan.array[(slice(None), *cut)])
    task = ScribblesTask(fit=likelihood.histogram, description="")
    answers = []
    for image, shown in ((scan, flat), (alone, flat[cut])):
        ends = four_ends(shown, axis)
        extremes = {"extremes": {"x": ends}, "clicks": {"foreground": ends}} if prompt == "ends" else {}
        answers.append(task.predict(image, Prompts(roi=around(shown, 0), **extremes), {}).labels)
    np.testing.assert_array_equal(answers[0][cut], answers[1])
    assert dice(answers[0], flat) > 0.85


def test_a_structure_that_only_one_channel_shows_is_found():
    volume, truth = scene()
    noise = np.random.default_rng(9).normal(100, 30, volume.array.shape).astype(np.int16)
    both = dataclasses.replace(volume, array=np.concatenate([noise, volume.array]))
    assert dice(next(fitted(Scan.of(both), around(truth))), truth) > 0.8


def test_of_a_series_of_images_the_first_is_segmented_and_the_answer_says_so():
    volume, truth = scene()
    series = dataclasses.replace(volume, array=np.concatenate([volume.array, *[volume.array[:, ::-1]] * 20]))
    task = ScribblesTask(fit=likelihood.histogram, description="")
    answer = task.predict(task.prepare(series), Prompts(roi=around(truth)), {})
    alone = task.predict(task.prepare(volume), Prompts(roi=around(truth)), {})
    np.testing.assert_array_equal(answer.labels, alone.labels)
    assert "first of 21 images" in answer.params["channels"]
    assert "channels" not in alone.params


def test_a_structure_is_found_at_the_images_end_too():
    volume, truth = scene()
    k = int(np.argwhere(truth)[:, 2].mean())
    half = dataclasses.replace(volume, array=volume.array[..., k:])  # it starts on the first slice, and is thin
    low, high = np.argwhere(truth[..., k:]).min(axis=0), np.argwhere(truth[..., k:]).max(axis=0) + 1
    part, _ = fitted(Scan.of(half), (tuple(low), tuple(high)))
    assert dice(part[..., :1], truth[..., k : k + 1]) > 0.85


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_a_box_alone_gives_the_curved_structure(margin):
    volume, truth = scene()
    task = ScribblesTask(fit=likelihood.forest, description="")
    prepared, box = task.prepare(volume), around(truth, margin)
    labels = task.predict(prepared, Prompts(roi=box), {}).labels
    assert dice(labels, truth) > 0.85
    outside = np.ones(SHAPE, bool)
    outside[tuple(slice(a, b) for a, b in zip(*box, strict=True))] = False
    assert not labels[outside].any()


def test_extreme_points_alone_give_the_curved_structure():
    volume, truth = scene()
    task = ScribblesTask(fit=likelihood.forest, description="")
    voxels = np.argwhere(truth)
    six = [
        tuple(int(n) for n in voxels[voxels[:, axis].argsort(kind="stable")[end]])
        for axis in range(3)
        for end in (0, -1)
    ]
    prompts = Prompts(extremes={"x": six}, clicks={"foreground": six}, roi=around(truth, 0))
    labels = task.predict(task.prepare(volume), prompts, {}).labels
    assert all(labels[point] == 1 for point in six)
    assert dice(labels, truth) > 0.85
