"""DeepGrow gives the clicked structure, exactly where it lies, and in two dimensions on the clicked slice alone."""

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.prompts.parse import parse_prompts
from rayapp.models.store import ModelStore
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.metrics import dice
from rayapp.training.options import ClickOptions
from rayapp.training.train_task import TrainRequest
from tests.inference.grids import ORIENTATIONS, affine_of
from tests.inference.near_and_bright import BRIGHT, DARK, answer, speckles, version
from tests.training.blobs import SMALL, blob, write_pairs

SHAPE = (19, 26, 12)
KINDS = {2: DeepGrow2DTask, 3: DeepGrow3DTask}
BOTH = pytest.mark.parametrize("dimensions", [2, 3])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """By dimensions."""
    folder = tmp_path_factory.mktemp("weights")
    return {dimensions: kind.from_version(version(folder, dimensions)) for dimensions, kind in KINDS.items()}


def image(bright, affine):
    return Volume(array=np.where(bright, BRIGHT, DARK).astype(np.int16)[None], affine=affine)


def near(bright, point):
    """The bright voxel of the same slice that is closest to a point."""
    places = np.argwhere(bright[:, :, point[2]])
    i, j = places[np.linalg.norm(places - point[:2], axis=1).argmin()]
    return int(i), int(j), point[2]


def points(rng, count, k=None):
    """Anywhere, or anywhere on a slice."""
    drawn = rng.integers(0, SHAPE, (count, 3))
    return [(int(i), int(j), int(at if k is None else k)) for i, j, at in drawn]


def mask(task, prepared, *, label=None, roi=None, at=None, **clicks):
    return task.predict(prepared, Prompts(clicks=clicks, label=label, roi=roi, slice=at), {}).labels


@pytest.fixture
def prepared(tasks, dimensions):
    return tasks[dimensions].prepare(image(speckles(SHAPE), affine_of(ORIENTATIONS[13], (0.8, 1.1, 2.5), 9)))


@pytest.fixture
def contrary(tmp_path, dimensions):
    """A task whose network finds all that is bright, and everything around background clicks."""
    return KINDS[dimensions].from_version(version(tmp_path, dimensions, contrary=True))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_in_space_the_answer_is_exact_on_any_grid(tasks, orientation):
    bright = speckles(SHAPE)
    prepared = tasks[3].prepare(image(bright, affine_of(orientation, (0.7, 1.3, 2.1), 11)))
    clicks, away = [near(bright, (4, 5, 2)), near(bright, (14, 9, 10))], [near(bright, (6, 14, 4))]
    expected = answer(bright, clicks, away)
    assert 0 < expected.sum() < answer(bright, clicks).sum()
    np.testing.assert_array_equal(mask(tasks[3], prepared, foreground=clicks, background=away), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_on_a_slice_the_answer_is_exact_on_any_grid_and_no_other_slice_has_one(tasks, orientation):
    bright = speckles(SHAPE)
    prepared = tasks[2].prepare(image(bright, affine_of(orientation, (0.7, 1.3, 2.1), 11)))
    for k in (0, 7, 11):
        clicks, away = [near(bright, (4, 5, k)), near(bright, (12, 20, k))], [near(bright, (13, 11, k))]
        elsewhere = [near(bright, (9, 4, 3)), near(bright, (15, 15, 8))]
        expected = np.zeros(SHAPE, bool)
        expected[:, :, k] = answer(bright[:, :, k], [at[:2] for at in clicks], [at[:2] for at in away])
        assert expected.any()
        asked = mask(tasks[2], prepared, at=k, foreground=[*clicks, *elsewhere], background=[*away, (2, 2, 5)])
        np.testing.assert_array_equal(asked, expected)
        last = mask(tasks[2], prepared, foreground=[*elsewhere, *clicks], background=[(2, 2, 5), *away])
        np.testing.assert_array_equal(last, expected)


@BOTH
@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_a_card_with_a_spacing_for_each_axis_is_exact_on_any_grid(tmp_path, dimensions, orientation):
    edges, (order, _) = (0.7, 1.3, 2.1), orientation
    made, bright = version(tmp_path, dimensions), speckles(SHAPE)
    shown = sorted(order[:dimensions])  # the patient's axes that the network has
    made.card["spacing"] = [edges[order.index(axis)] for axis in shown]
    task = KINDS[dimensions].from_version(made)
    prepared = task.prepare(image(bright, affine_of(orientation, edges, 11)))
    clicks, away = [near(bright, (4, 5, 7)), near(bright, (14, 9, 7))], [near(bright, (6, 14, 7))]
    if dimensions == 2:
        expected = np.zeros(SHAPE, bool)
        expected[:, :, 7] = answer(bright[:, :, 7], [at[:2] for at in clicks], [at[:2] for at in away])
    else:
        expected = answer(bright, clicks, away)
    np.testing.assert_array_equal(mask(task, prepared, foreground=clicks, background=away), expected)


@BOTH
@pytest.mark.parametrize("spacing", [0, 4.0])
def test_every_click_is_obeyed_however_close_to_others(tmp_path, dimensions, spacing):
    made = version(tmp_path, dimensions)
    made.card["spacing"] = spacing
    task, rng = KINDS[dimensions].from_version(made), np.random.default_rng(1)
    prepared = task.prepare(image(speckles(SHAPE), affine_of(ORIENTATIONS[29], (0.8, 1.1, 2.5), 9)))
    for _ in range(12):
        drawn = list(dict.fromkeys(points(rng, 60, k=5 if dimensions == 2 else None)))
        labels = mask(task, prepared, foreground=drawn[::2], background=drawn[1::2])
        assert all(labels[point] == 1 for point in drawn[::2])
        assert not any(labels[point] for point in drawn[1::2])
        assert set(np.unique(labels)) == {0, 1}


@BOTH
def test_background_clicks_only_take_away_even_if_the_network_would_add(contrary, prepared, dimensions):
    rng = np.random.default_rng(2)
    for _ in range(12):
        drawn = list(dict.fromkeys(points(rng, 8, k=5 if dimensions == 2 else None)))
        before = mask(contrary, prepared, foreground=drawn[:3])
        after = mask(contrary, prepared, foreground=drawn[:3], background=drawn[3:])
        assert not any(after[point] for point in drawn[3:])
        np.testing.assert_array_equal(before[after > 0], 1)


@BOTH
def test_background_clicks_alone_leave_nothing(contrary, prepared, dimensions):
    assert not mask(contrary, prepared, background=[(4, 5, 6), (9, 9, 6)]).any()


@BOTH
def test_without_a_click_it_asks_for_one(tasks, prepared, dimensions):
    with pytest.raises(BadRequest, match="click on a structure"):
        mask(tasks[dimensions], prepared)
    with pytest.raises(BadRequest, match="click on a structure"):
        mask(tasks[dimensions], prepared, label="liver", spleen=[(1, 2, 3)])


def test_a_slice_without_a_click_is_named(tasks):
    prepared = tasks[2].prepare(image(speckles(SHAPE), np.eye(4)))
    with pytest.raises(BadRequest, match="on slice 4"):
        mask(tasks[2], prepared, at=4, foreground=[(1, 2, 3)])


@BOTH
def test_outside_the_box_there_is_nothing(tasks, prepared, dimensions):
    click = near(speckles(SHAPE), (9, 12, 6))
    whole, boxed = (
        mask(tasks[dimensions], prepared, foreground=[click], roi=roi) for roi in (None, ((7, 11, 5), (11, 26, 8)))
    )
    inside = np.zeros(SHAPE, bool)
    inside[7:11, 11:26, 5:8] = True
    np.testing.assert_array_equal(boxed, whole * inside)
    assert 0 < boxed.sum() < whole.sum()
    beside = mask(tasks[dimensions], prepared, foreground=[click], roi=((0, 0, 10), (19, 26, 12)))
    assert not beside.any(), "nor what was clicked there"


@BOTH
def test_the_forms_of_both_clients_mean_the_same(tasks, prepared, dimensions):
    task, on, off = tasks[dimensions], [[9, 12, 6], [10, 14, 6]], [[3, 4, 6]]
    forms = {
        "slicer": {
            "label": "lesion", "foreground": on, "background": off, "slice": 6 if dimensions == 2 else None,
            "roi": [], "reset_state": True, "largest_cc": False, "result_extension": ".nrrd", "client_id": "x",
        },
        "ohif": {"foreground": on, "background": off, "result_compress": False, "restore_label_idx": False},
        "by name": {"label": "lesion", "lesion": on, "spleen": [[1, 1, 1]], "background": off},
    }  # fmt: skip
    found = {
        name: task.predict(prepared, parse_prompts(params, task.info, SHAPE), params) for name, params in forms.items()
    }
    for prediction in found.values():
        np.testing.assert_array_equal(prediction.labels, found["slicer"].labels)
    assert found["slicer"].params == found["by name"].params == {"label_names": {"lesion": 1}}
    assert found["ohif"].params == {}


@BOTH
def test_a_structure_called_background_is_clicked_with_foreground_clicks(tasks, prepared, dimensions):
    on, off = (9, 12, 6), (3, 4, 6)
    labels = mask(tasks[dimensions], prepared, label="background", foreground=[on], background=[off])
    assert labels[on] == 1
    assert labels[off] == 0


@BOTH
def test_it_is_listed_as_clients_need_it(tasks, dimensions):
    info = tasks[dimensions].info
    assert (info.type, info.dimension, info.labels) == ("deepgrow", dimensions, {})


def test_hints_have_half_a_say_and_beside_background_clicks_none(tmp_path):
    click, hint, beside, beyond = (4, 5, 6), (14, 20, 6), (14, 16, 6), (14, 8, 6)
    bright = speckles(SHAPE)
    bright[tuple(np.transpose([click, hint, beside, beyond]))] = True
    task = DeepGrow3DTask.from_version(version(tmp_path, 3, eager=2))
    prepared = task.prepare(image(bright, np.eye(4)))
    hinted = task.with_hints(prepared, [hint])
    alone = mask(task, prepared, foreground=[click])
    found = mask(task, hinted, foreground=[click])
    np.testing.assert_array_equal(found, answer(bright, [click, hint]) | alone)
    np.testing.assert_array_equal(mask(task, hinted, foreground=[click], background=[beyond])[:, 16:], found[:, 16:])
    np.testing.assert_array_equal(mask(task, hinted, foreground=[click], background=[beside]), alone)
    np.testing.assert_array_equal(mask(task, prepared, foreground=[click]), alone)


def test_a_stack_counts_its_slices(tasks):
    prepared = tasks[2].prepare(image(speckles(SHAPE), np.eye(4)))
    assert prepared.nbytes == (2 + 2) * np.prod(SHAPE)  # float16, and the image as it is


@BOTH
def test_an_image_with_too_few_channels_is_refused(tmp_path, dimensions):
    made = version(tmp_path, dimensions)
    made.card["network"]["in_channels"] = 4
    kind = KINDS[dimensions]
    with pytest.raises(BadRequest, match="needs 2 channels"):
        kind.from_version(made).prepare(image(speckles(SHAPE), np.eye(4)))
    made.card["network"]["out_channels"] = 3
    with pytest.raises(ModelBroken, match="out_channels"):
        kind.from_version(made).load()


TRAINERS = {2: DeepGrow2dTrainTask, 3: DeepGrowTrainTask}


@BOTH
def test_what_the_trainer_makes_outlines_what_is_clicked(dimensions, tmp_path):
    params = {**SMALL, "max_epochs": 16, "rounds": 1, "augment": False}
    if dimensions == 2:
        params |= {"network": {**SMALL["network"], "spatial_dims": 2}, "roi_size": [24, 24]}
    name = f"deepgrow_{dimensions}d"
    asked = TrainRequest(model=name, pairs=write_pairs(tmp_path / "blobs", 8), folder=tmp_path / "run", params=params)
    trainer = TRAINERS[dimensions](description="", options=ClickOptions(val_clicks=2))
    result = trainer.train(asked, LocalHost(tmp_path / "host", device=torch.device("cpu")))
    published = ModelStore(tmp_path / "models").publish(name, result.weights, result.card)
    task = KINDS[dimensions].from_version(published)
    scores = []
    for seed in (101, 102, 103):
        volume, labels = blob(seed)
        prepared = task.prepare(volume)
        for value in (1, 2):
            place = np.argwhere(labels == value)
            click = tuple(int(n) for n in place[np.linalg.norm(place - place.mean(0), axis=1).argmin()])
            truth = (labels == value).astype(np.uint8)
            if dimensions == 2:
                truth[:, :, [k for k in range(truth.shape[2]) if k != click[2]]] = 0
            scores.append(dice(mask(task, prepared, foreground=[click]), truth, 1)[0])
    assert np.mean(scores) > 0.5
