"""Scribbles on a network's proposal: strokes hold, and help; elsewhere the network's word stands."""

import numpy as np
import pytest

from rayapp.errors import BadRequest
from rayapp.imaging.phantom import ORGANS
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.refinement import RefinementTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND


@pytest.fixture(scope="module", params=["segmentation", "deepedit"])
def network(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def task(network):
    made = RefinementTask(network=network, description="refined")
    made.load()
    return made


@pytest.fixture(scope="module")
def prepared(task, cases):
    return task.prepare(cases[0][0])


def refine(task, prepared, label="liver", marks=None, config=(), **prompts):
    return task.predict(prepared, Prompts(marks=marks, label=label, **prompts), dict(config)).labels


def dice(labels, truth):
    return 2 * (labels.astype(bool) & truth).sum() / (labels.sum() + truth.sum())


@pytest.mark.parametrize("optimiser", ["graph cut", "random walk"])
@pytest.mark.parametrize("label", ["liver", "spleen"])
def test_without_strokes_it_is_what_the_network_sees_along_the_images_edges(task, prepared, cases, label, optimiser):
    truth = cases[0][1].array == ORGANS[label]
    labels = refine(task, prepared, label, config={"optimiser": optimiser})
    assert set(np.unique(labels)) <= {0, 1}
    assert dice(labels, truth) > 0.8


def test_strokes_hold_and_change_more_than_their_voxels(task, prepared, cases):
    before = refine(task, prepared)
    marks = np.zeros(before.shape, np.uint8)
    on, off = np.argwhere(before == 1), np.argwhere(before == 0)
    changed, marked = [], []
    for share in (0.2, 0.35, 0.5, 0.65, 0.8):
        marks[:] = 0
        i, j, k = on[int(share * len(on))]
        marks[i - 4 : i + 5, j, k] = BACKGROUND
        marks[tuple(off[int(share * len(off))])] = FOREGROUND
        after = refine(task, prepared, marks=marks)
        assert not after[marks == BACKGROUND].any()
        assert after[marks == FOREGROUND].all()
        changed.append(np.count_nonzero(after != before))
        marked.append(np.count_nonzero(marks))
    assert sum(changed) > 3 * sum(marked)
    assert (np.array(changed) > marked).all()


def test_a_line_through_what_the_network_missed_brings_it_in(task, prepared, cases):
    truth = cases[0][1].array == ORGANS["stomach"]
    before = refine(task, prepared, "liver")  # the stomach is none of it
    marks = np.zeros(before.shape, np.uint8)
    k = int(np.argmax(truth.sum(axis=(0, 1))))
    marks[..., k][truth[..., k]] = FOREGROUND
    after = refine(task, prepared, "liver", marks)
    assert after[truth].mean() > before[truth].mean() + 2 * (marks[truth] > 0).mean()


def test_the_network_runs_once_per_image(task, network, cases, monkeypatch):
    runs = []
    log_odds = network.log_odds
    monkeypatch.setattr(network, "log_odds", lambda image: runs.append(1) or log_odds(image))
    image = task.prepare(cases[1][0])
    first = refine(task, image)
    np.testing.assert_array_equal(refine(task, image), first)
    assert runs == [1]
    assert image.nbytes > image.scan.nbytes + image.image.nbytes


def test_outside_the_box_all_is_background(task, prepared, cases):
    middle = [int(n) for n in np.argwhere(cases[0][1].array == ORGANS["liver"]).mean(axis=0)]
    box = tuple(slice(n - 5, n + 4) for n in middle)
    labels = refine(task, prepared, roi=(tuple(s.start for s in box), tuple(s.stop for s in box)))
    assert labels[box].any()
    assert labels.sum() == labels[box].sum()


@pytest.mark.parametrize("label", [None, "heart", "background"])
def test_a_structure_that_the_network_does_not_know_is_refused(task, prepared, label):
    with pytest.raises(BadRequest, match=r"selected_label_name: liver"):
        refine(task, prepared, label)


def test_it_is_listed_with_the_networks_structures_and_version(task, network):
    assert task.info.type == "scribbles"
    assert task.info.labels == ORGANS
    assert task.version == task.info.version == network.version


def test_the_network_is_needed_once_per_image(task, cases):
    prepared = task.prepare(cases[1][0])
    assert task.needs_network(prepared)
    refine(task, prepared)
    assert not task.needs_network(prepared)
