"""Clicks on real volumes that no training saw: they are obeyed, they help, and they wipe nothing that was right."""

import numpy as np
import pytest
import torch

from benchmarks import train_hippocampus
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.methods.deepgrow_pipeline import DeepGrowPipelineTask
from rayapp.models.store import ModelStore
from rayapp.training import click_simulation
from rayapp.training.cases import read_pair
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.metrics import dice
from rayapp.training.options import ClickOptions
from rayapp.training.train_task import TrainRequest
from tests.real_data import real

LABELS = {"anterior": 1, "posterior": 2}
NAMES = ("background", *LABELS)
TRAINED, HELD = 24, 24
NETWORK = {"name": "UNet", "spatial_dims": 3, "channels": [8, 16, 32], "strides": [2, 2], "num_res_units": 1}
PARAMS = {"network": NETWORK, "max_epochs": 20, "train_batch_size": 2, "val_interval": 5, "amp": False}
CLICKS = 6

pytestmark = pytest.mark.slow


def trained(trainer, name, folder, dimensions=3):
    pairs = hippocampi()[:TRAINED]
    params = {**PARAMS, "network": {**NETWORK, "spatial_dims": dimensions}}
    request = TrainRequest(model=name, pairs=pairs, folder=folder / "run", params=params)
    result = trainer.train(request, LocalHost(folder / "host", device=torch.device("cpu")))
    return ModelStore(folder / "models").publish(name, result.weights, result.card)


def hippocampi():
    real("hippocampus")
    return train_hippocampus.hippocampi()


@pytest.fixture(scope="module")
def deepedit(tmp_path_factory):
    trainer = DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions())
    return DeepEditTask.from_version(trained(trainer, "deepedit", tmp_path_factory.mktemp("deepedit")))


@pytest.fixture(scope="module")
def deepgrow(tmp_path_factory):
    trainer = DeepGrowTrainTask(description="", options=ClickOptions())
    return DeepGrow3DTask.from_version(trained(trainer, "deepgrow_3d", tmp_path_factory.mktemp("deepgrow")))


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    trainer = DeepGrow2dTrainTask(description="", options=ClickOptions())
    folder = tmp_path_factory.mktemp("deepgrow_2d")
    return DeepGrow2DTask.from_version(trained(trainer, "deepgrow_2d", folder, dimensions=2))


@pytest.fixture(scope="module")
def together(flat, deepgrow):
    return DeepGrowPipelineTask(model_2d=flat, model_3d=deepgrow, description="")


@pytest.fixture(scope="module")
def held():
    """(volume, labels) of volumes that were not trained with."""
    return [read_pair(pair, LABELS)[:2] for pair in hippocampi()[-HELD:]]


def correct(found, truth, clicks, rng):
    """One more click, into the largest error. False if there is none."""
    for label, position in click_simulation.corrections(truth, found, len(NAMES), count=1, rng=rng):
        clicks.setdefault(NAMES[label], []).append(tuple(int(n) for n in position))
        return True
    return False


def test_deepedit_obeys_and_each_click_helps(deepedit, held):
    scores, rng = np.zeros((len(held), CLICKS + 1)), np.random.default_rng(0)
    for row, (volume, truth) in zip(scores, held, strict=True):
        prepared, clicks = deepedit.prepare(volume), {}
        for count in range(CLICKS + 1):
            labels = deepedit.predict(prepared, Prompts(clicks=clicks), {}).labels
            assert all(labels[at] == NAMES.index(name) for name, points in clicks.items() for at in points)
            added = {**clicks, "background": []}
            without = deepedit.predict(prepared, Prompts(clicks=added), {}).labels
            np.testing.assert_array_equal(labels[labels > 0], without[labels > 0])
            row[count] = np.nanmean(dice(labels, truth, 2))
            correct(labels, truth, clicks, rng)
    mean = scores.mean(axis=0)
    print("DeepEdit, mean Dice by clicks", mean.round(4))
    assert (np.diff(mean) >= 0).all()
    assert mean[-1] > mean[0] + 0.01


def test_a_mask_that_exists_is_refined_and_never_made_worse(deepedit, held):
    before, after, rng = [], [], np.random.default_rng(1)
    for volume, truth in held:
        prepared, clicks = deepedit.prepare(volume), {}
        start = np.where(np.arange(truth.shape[2]) < truth.shape[2] // 2, truth, 0).astype(np.uint8)
        labels = start
        for _ in range(CLICKS):
            correct(labels, truth, clicks, rng)
            labels = deepedit.predict(prepared, Prompts(clicks=clicks, start=start), {}).labels
        assert all(labels[at] == NAMES.index(name) for name, points in clicks.items() for at in points)
        before.append(np.nanmean(dice(start, truth, 2)))
        after.append(np.nanmean(dice(labels, truth, 2)))
    print("start", np.round(before, 3), "after", np.round(after, 3))
    assert np.mean(after) > np.mean(before)


def corrected(task, prepared, one, rng):
    """One structure, clicked and corrected; each answer obeys all clicks, and background clicks took away only. The
    clicks, and the mask after four of them."""
    clicks = {"foreground": [click_simulation.largest_component(one, 1).click(rng)]}
    for _ in range(4):
        labels = task.predict(prepared, Prompts(clicks=clicks), {}).labels
        assert all(labels[at] == 1 for at in clicks["foreground"])
        assert not any(labels[at] for at in clicks.get("background", ()))
        without = task.predict(prepared, Prompts(clicks={"foreground": clicks["foreground"]}), {}).labels
        assert not (labels & ~without).any()
        for label, position in click_simulation.corrections(one, labels, 2, count=1, rng=rng):
            clicks.setdefault(("background", "foreground")[label], []).append(tuple(int(n) for n in position))
    return clicks, labels


def test_deepgrow_obeys_takes_away_only_and_leaves_other_structures(deepgrow, held):
    rng, scores = np.random.default_rng(2), []
    for volume, truth in held:
        prepared = deepgrow.prepare(volume)
        one = (truth == 1).astype(np.uint8)
        clicks, labels = corrected(deepgrow, prepared, one, rng)
        scores.append(dice(labels, one, 1)[0])
        others = np.where(truth == 2, 9, 0).astype(np.uint8)
        beside = deepgrow.predict(prepared, Prompts(clicks=clicks, start=others), {}).labels
        clicked = np.zeros(truth.shape, bool)
        clicked[tuple(np.array(clicks["foreground"]).T)] = True
        assert not beside[(others > 0) & ~clicked].any()
    print("DeepGrow, Dice after 4 clicks", np.round(scores, 3))
    assert np.mean(scores) > 0.6


def test_deepgrow_on_a_slice_obeys_and_takes_away_only(flat, held):
    rng, scores = np.random.default_rng(3), []
    for volume, truth in held:
        k = int((truth == 1).sum((0, 1)).argmax())
        one = np.where(np.arange(truth.shape[2]) == k, truth == 1, 0).astype(np.uint8)
        _, labels = corrected(flat, flat.prepare(volume), one, rng)
        scores.append(dice(labels, one, 1)[0])
    print("DeepGrow 2D, Dice after 4 clicks", np.round(scores, 3))
    assert np.mean(scores) > 0.7


def test_the_pipeline_obeys_takes_away_only_and_is_no_worse_than_the_model_of_volumes(together, deepgrow, held):
    scores = []
    for number, (volume, truth) in enumerate(held):
        one = (truth == 1).astype(np.uint8)
        row = []
        for task in (together, deepgrow):
            _, labels = corrected(task, task.prepare(volume), one, np.random.default_rng(number))
            row.append(dice(labels, one, 1)[0])
        scores.append(row)
    both, alone = np.mean(scores, axis=0)
    print("pipeline", both.round(3), "DeepGrow 3D", alone.round(3))
    assert both > 0.6
    assert both > alone - 0.01
