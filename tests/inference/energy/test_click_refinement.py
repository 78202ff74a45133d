"""The fine pass: sharper than the network's grid, around the clicks alone, the same on every replica."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import ndimage

from rayapp.imaging.phantom import phantom
from rayapp.imaging.volume import Volume
from rayapp.inference.energy import click_refinement
from rayapp.inference.energy.graph_cut import graph_cut
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.training.metrics import dice
from tests.inference.grids import ORIENTATIONS, affine_of, turned, turned_labels, turned_point
from tests.inference.near_and_bright import BRIGHT, DARK, version

SHAPE = (57, 66, 48)
SPACING = (1.3, 1.1, 1.9)
CENTRE = np.array((26, 31, 22))


def body():
    """A lump that no two orientations show alike, its border off any coarse grid's."""
    at = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    lump = np.linalg.norm((at - CENTRE) / (9.4, 7.2, 6.3), axis=-1) < 1
    return lump | ((np.abs(at - (33, 36, 24)) < (7, 4, 3)).all(axis=-1))


@pytest.fixture(scope="module")
def shown():
    return body()


@pytest.fixture(scope="module")
def volume(shown):
    array = np.where(shown, BRIGHT, DARK).astype(np.int16)
    array[:8] = BRIGHT  # most of what is bright is something else
    return Volume(array=array[None], affine=affine_of(ORIENTATIONS[29], SPACING, 9))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By whether it finds more around background clicks: models that see a third of each axis' voxels."""

    def task(folder, contrary):
        one = version(folder, 3, contrary=contrary)
        one.card["roi_size"] = [20, 20, 20]
        return DeepGrow3DTask.from_version(one)

    return {contrary: task(tmp_path_factory.mktemp("weights"), contrary) for contrary in (False, True)}


@pytest.fixture(scope="module")
def deepgrow(made):
    return made[False]


@pytest.fixture(scope="module")
def prepared(deepgrow, volume):
    return deepgrow.prepare(volume)


def stages(task, prepared, roi=None, **clicks):
    return [prediction.labels for prediction in task.stages(prepared, Prompts(clicks=clicks, roi=roi), {})]


def mask(task, prepared, roi=None, **clicks):
    return stages(task, prepared, roi, **clicks)[-1]


def points(rng, count):
    return [tuple(int(n) for n in point) for point in rng.integers(0, SHAPE, (count, 3))]


def test_the_second_answer_is_sharper_than_the_first(deepgrow, prepared, shown):
    rough, sharp = stages(deepgrow, prepared, foreground=[tuple(CENTRE)])
    assert dice(rough, shown, 1)[0] < 0.93
    assert dice(sharp, shown, 1)[0] > 0.99


def test_a_call_that_stands_alone_waits_for_the_second_answer_only_if_it_says_so(deepgrow, prepared):
    rough, sharp = stages(deepgrow, prepared, foreground=[tuple(CENTRE)])
    assert deepgrow.info.config["refine"] is False
    for config, expected in (({}, rough), ({"refine": "true"}, sharp), ({"refine": False}, rough)):
        found = deepgrow.predict(prepared, Prompts(clicks={"foreground": [tuple(CENTRE)]}), config).labels
        np.testing.assert_array_equal(found, expected)


def test_an_image_that_the_network_sees_in_full_has_one_answer(tmp_path, volume):
    task = DeepGrow3DTask.from_version(version(tmp_path, 3))
    crop = Volume(array=volume.array[:, 10:42, 15:47, 8:40], affine=volume.affine)
    assert len(stages(task, task.prepare(crop), foreground=[(16, 16, 14)])) == 1


@pytest.mark.parametrize("contrary", [False, True])
def test_every_click_is_obeyed(made, volume, contrary):
    rng, task = np.random.default_rng(1), made[contrary]
    prepared = task.prepare(volume)
    for count in (1, 8):
        drawn = list(dict.fromkeys(points(rng, 2 * count)))
        labels = mask(task, prepared, foreground=drawn[::2], background=drawn[1::2])
        assert all(labels[point] == 1 for point in drawn[::2])
        assert not any(labels[point] for point in drawn[1::2])


@pytest.mark.parametrize("contrary", [False, True])
def test_background_clicks_only_take_away(made, volume, shown, contrary):
    rng, task = np.random.default_rng(2), made[contrary]
    prepared, inside = task.prepare(volume), np.argwhere(shown)
    before = mask(task, prepared, foreground=[tuple(CENTRE)])
    for _ in range(4):
        at = [tuple(int(n) for n in point) for point in rng.choice(inside, 2)]
        off = [point for point in (*at, *points(rng, 2)) if point != tuple(CENTRE)]
        after = mask(task, prepared, foreground=[tuple(CENTRE)], background=off)
        assert not (after & ~before).any()
        assert after.sum() < before.sum()


def test_the_same_clicks_give_the_same_mask_in_any_order_on_any_replica(deepgrow, prepared, volume):
    rng = np.random.default_rng(3)
    on, off = [tuple(CENTRE), *points(rng, 2)], points(rng, 2)
    labels = mask(deepgrow, prepared, foreground=on, background=off)
    mask(deepgrow, prepared, foreground=off)
    fresh = deepgrow.prepare(volume)
    np.testing.assert_array_equal(mask(deepgrow, fresh, foreground=on[::-1], background=off[::-1]), labels)


def test_a_click_means_the_same_place_on_a_turned_grid(deepgrow, prepared, volume):
    order, flips = (2, 0, 1), (True, False, True)
    on, off = [tuple(int(n) for n in CENTRE)], [(33, 36, 24)]
    moved = [[turned_point(point, SHAPE, order, flips) for point in at] for at in (on, off)]
    again = deepgrow.prepare(turned(volume, order, flips))
    labels = mask(deepgrow, prepared, foreground=on, background=off)
    assert labels.any()
    found = mask(deepgrow, again, foreground=moved[0], background=moved[1])
    assert (found != turned_labels(labels, order, flips)).mean() < 1e-4


def test_outside_the_box_there_is_nothing(deepgrow, prepared):
    whole, boxed = (
        mask(deepgrow, prepared, roi, foreground=[tuple(CENTRE)]) for roi in (None, ((20, 0, 0), (57, 33, 30)))
    )
    inside = np.zeros(SHAPE, bool)
    inside[20:, :33, :30] = True
    np.testing.assert_array_equal(boxed, whole * inside)


@pytest.fixture(scope="module")
def torso(deepedit):
    volume, truth = phantom(2_000_007, shape=(150, 140, 110))
    prepared = deepedit.prepare(volume)
    return truth.array, prepared, mask(deepedit, prepared)


def test_away_from_the_clicks_the_automatic_answer_stays(deepedit, torso):
    truth, prepared, automatic = torso
    kidney = tuple(int(n) for n in np.argwhere(truth == 3)[1000])
    labels = mask(deepedit, prepared, right_kidney=[kidney])
    differs = labels != automatic
    assert differs.any()
    reach = np.linalg.norm((np.argwhere(differs) - kidney) * prepared.scan.spacing, axis=1)
    assert reach.max() < 120
    assert differs.sum() < 0.5 * (truth == 3).sum()


def test_every_click_on_every_structure_is_obeyed_and_no_background_click_adds(deepedit, torso):
    truth, prepared, _ = torso
    rng = np.random.default_rng(4)
    names = list(deepedit.info.labels)
    clicks = {name: [tuple(int(n) for n in point) for point in rng.integers(0, truth.shape, (3, 3))] for name in names}
    labels = mask(deepedit, prepared, **clicks)
    for name, at in clicks.items():
        assert all(labels[point] == deepedit.info.labels[name] for point in at)
    without = mask(deepedit, prepared, **{**clicks, "background": []})
    np.testing.assert_array_equal(labels[labels > 0], without[labels > 0])


def test_a_correct_click_on_a_border_sharpens_it(deepedit, torso):
    truth, prepared, automatic = torso
    border = (truth == 4) & ~ndimage.binary_erosion(truth == 4)
    missed = np.argwhere(border & (automatic != 4))
    gains = []
    for click in missed[:: len(missed) // 12]:
        rough, sharp = stages(deepedit, prepared, left_kidney=[tuple(int(n) for n in click)])
        gains.append(dice(sharp, truth, 5)[3] - dice(rough, truth, 5)[3])
    assert np.mean(gains) > 0.005
    assert min(gains) > -0.001


def test_many_clicks_close_to_each_other_cost_little_more_than_one(deepedit, torso, monkeypatch):
    truth, prepared, _ = torso
    cuts = []
    monkeypatch.setattr(click_refinement, "graph_cut", lambda *given: cuts.append(1) or graph_cut(*given))
    liver = np.argwhere(truth == 1)
    clicks = liver[np.abs(liver - np.median(liver, axis=0)).max(axis=1) < 9]
    assert len(clicks) > 1000
    for step, most in (
        (len(clicks), click_refinement.GROWTHS + 1),
        (len(clicks) // 30, 2 * (click_refinement.GROWTHS + 1)),
    ):
        cuts.clear()
        points = [tuple(int(n) for n in click) for click in clicks[::step]]
        labels = mask(deepedit, prepared, liver=points)
        assert all(labels[point] == 1 for point in points)
        assert 0 < len(cuts) <= most


@pytest.mark.slow
def test_a_large_ct_needs_little_more_memory_than_its_mask(deepedit):
    shape = (512, 512, 400)
    rng = np.random.default_rng(5)
    array = np.full(shape, -1000, np.int16)
    array[60:450, 100:420] = 40
    array[180:300, 200:330, 90:260] = 160
    array[::7, ::5] += rng.integers(-20, 20, (74, 103, 400)).astype(np.int16)
    volume = Volume(array=array[None], affine=affine_of(ORIENTATIONS[13], (0.8, 0.8, 0.8)))
    torch.set_num_threads(1)
    tracemalloc.start()
    prepared = deepedit.prepare(volume)
    held = tracemalloc.get_traced_memory()[0]
    rough, sharp = stages(deepedit, prepared, liver=[(240, 260, 170), (185, 260, 170)], background=[(310, 260, 170)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (rough.nbytes, sharp.nbytes) == (array.size, array.size)
    assert held < 200e6
    assert peak - held < 2 * array.size + 250e6


@pytest.fixture(scope="module")
def existing(shown):
    """A mask that somebody made: the lump without its upper part, and a piece of something else beside it."""
    start = shown.astype(np.uint8)
    start[:, :, 24:] = 0
    start[20:23, 50:60, 10:20] = 1
    return start


def corrected(task, prepared, start, **clicks):
    return task.predict(prepared, Prompts(clicks=clicks, start=start), {}).labels


def test_a_mask_is_corrected_where_it_was_clicked_and_stays_everywhere_else(deepgrow, prepared, shown, existing):
    on, off = (26, 31, 26), (21, 55, 15)
    grown = corrected(deepgrow, prepared, existing, foreground=[on])
    assert (grown >= existing).all()
    assert not (grown & ~(shown | existing.astype(bool))).any()
    assert dice(grown[10:45, :48], shown[10:45, :48], 1)[0] > 0.98 > dice(existing[10:45, :48], shown[10:45, :48], 1)[0]
    shrunk = corrected(deepgrow, prepared, existing, background=[off])
    assert (shrunk <= existing).all()
    assert not shrunk[20:23, 50:60, 10:20].any()
    np.testing.assert_array_equal(shrunk[:, :46], existing[:, :46])


def test_labels_of_other_structures_are_left_alone(deepgrow, prepared, shown, existing):
    other = existing.copy()
    other[24:29, 28:34, 25:28] = 7
    grown = corrected(deepgrow, prepared, other, foreground=[(32, 31, 25)])
    assert grown[32, 31, 25] == 1
    assert (grown[:, :, 24:] > 0).sum() > 100
    assert not grown[other == 7].any()
    assert set(np.unique(grown)) == {0, 1}


def test_a_mask_of_several_structures_is_corrected_and_without_clicks_stays(deepedit, torso):
    truth, prepared, _ = torso
    start = truth.copy()
    start[truth == 2] = 0
    np.testing.assert_array_equal(corrected(deepedit, prepared, start), start)
    spleen = np.argwhere(truth == 2)
    click = tuple(int(n) for n in spleen[np.linalg.norm(spleen - spleen.mean(0), axis=1).argmin()])
    labels = corrected(deepedit, prepared, start, spleen=[click])
    assert labels[click] == 2
    np.testing.assert_array_equal(labels[labels != start], 2)
    assert dice(labels, truth, 5)[1] > 0.8


def test_on_a_slice_a_mask_is_corrected_too(tmp_path, volume, shown, existing):
    task = DeepGrow2DTask.from_version(version(tmp_path, 2))
    crop = Volume(array=volume.array[:, 10:42, 15:47], affine=volume.affine)
    start = existing[10:42, 15:47] & (np.arange(32) < 14)[:, None, None]
    found = corrected(task, task.prepare(crop), start, foreground=[(19, 16, 20)])
    assert not found[:, :, :20].any()
    assert (found[:, :, 20] >= start[:, :, 20]).all()
    assert dice(found[:, :, 20:21], shown[10:42, 15:47, 20:21], 1)[0] > 0.9


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A model of slices that sees a third of their voxels along each axis."""
    one = version(tmp_path_factory.mktemp("flat"), 2)
    one.card["roi_size"] = [20, 20]
    return DeepGrow2DTask.from_version(one)


def test_on_a_slice_the_second_answer_is_sharper_too(flat, volume, shown):
    rough, sharp = stages(flat, flat.prepare(volume), foreground=[tuple(CENTRE)])
    k = CENTRE[2]
    scores = [dice(found[..., k : k + 1], shown[..., k : k + 1], 1)[0] for found in (rough, sharp)]
    assert scores[1] > 0.98 > scores[0] + 0.1
    assert not np.delete(sharp, k, axis=2).any()


def test_on_a_slice_every_click_is_obeyed_and_background_only_takes_away(flat, volume):
    prepared, rng = flat.prepare(volume), np.random.default_rng(6)
    for k in range(14, 30, 3):
        on, off = ([(i, j, k) for i, j, _ in points(rng, 3)] for _ in range(2))
        without, found = mask(flat, prepared, foreground=on), mask(flat, prepared, foreground=on, background=off)
        assert all(found[at] for at in on if at not in off)
        assert not any(found[at] for at in off)
        assert not (found & ~without).any()
