"""A run goes on from the version in production, gently, until there is enough to ask for a larger design."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayapp.models.networks import full_unet, strided_unet
from rayapp.models.store import ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.design import GRID, Design
from rayapp.training.local_host import LocalHost
from rayapp.training.options import Options
from rayapp.training.start import outgrown
from rayapp.training.train_task import TrainRequest
from tests.training.blobs import LABELS, SMALL

STRIDES = [(2, 2, 2), (2, 2, 2)]
CPU = torch.device("cpu")


def design(**other):
    made = Design(
        labels=LABELS,
        spacing=(2.0, 2.0, 2.0),
        roi_size=(32, 32, 32),
        network=strided_unet(1, 3, STRIDES, width=16),
        channels=1,
    )
    return dataclasses.replace(made, **other)


def version(made=None, *, images, device="cpu"):
    card = {**(made or design()).card(), "plan": {"images": images, "device": device}}
    return ModelVersion(name="segmentation", version="v3", weights=Path("none"), card=card)


BETTER = [
    ({"spacing": (1.5, 1.5, 2.0)}, "finer voxels"),
    ({"roi_size": (48, 48, 32)}, "a larger window"),
    ({"network": strided_unet(1, 3, STRIDES, width=32)}, "a larger network"),
    ({"network": full_unet(1, 3, STRIDES, [(3, 3, 3)] * 3, width=32)}, "a larger network"),
]


@pytest.mark.parametrize(("change", "reason"), BETTER)
def test_a_design_gives_way_to_one_that_sees_more_once_the_labels_have_doubled(change, reason):
    larger, origin = design(**change), {"images": 20, "device": "cpu"}
    why = outgrown(version(images=10), larger, origin, 10)
    assert why == f"20 images are labelled instead of 10, and {reason} is possible".replace("voxels is", "voxels are")
    assert outgrown(version(images=11), larger, origin, 11) is None
    assert outgrown(version(images=0), larger, origin, 0) is None  # its card does not say


@pytest.mark.parametrize(("change", "reason"), BETTER)
def test_a_design_that_was_tried_and_not_promoted_is_not_tried_again_for_as_many_labels(change, reason):
    assert outgrown(version(images=10), design(**change), {"images": 21, "device": "cpu"}, 20) is None
    assert reason in outgrown(version(images=10), design(**change), {"images": 40, "device": "cpu"}, 20)


@pytest.mark.parametrize(("change", "reason"), BETTER)
def test_another_kind_of_device_asks_for_another_design_once(change, reason):
    why = outgrown(version(images=10), design(**change), {"images": 11, "device": "cuda"}, 10)
    assert "designed for training on cpu" in why
    assert reason in why
    assert outgrown(version(images=10), design(**change), {"images": 11, "device": "cuda"}, 11) is None


@pytest.mark.parametrize(
    "change", [{}, {"spacing": (1.9, 2.0, 2.0)}, {"roi_size": (16, 16, 16)}, {"spacing": (4.0, 4.0, 4.0)}]
)
def test_a_design_that_sees_no_more_does_not_replace_another(change):
    assert outgrown(version(images=10), design(**change), {"images": 99, "device": "cpu"}, 10) is None


def train(pairs, folder, parent, **params):
    task = BasicTrainTask(labels=LABELS, description="", options=Options())
    given = {key: value for key, value in SMALL.items() if key not in ("learning_rate", *GRID)}
    request = TrainRequest(
        model="segmentation",
        pairs=pairs,
        folder=folder / "run",
        params={**given, **params},
        parent=parent,
        baseline=parent,
        tried=0 if parent is None else parent.designed_for,
    )
    result = task.train(request, LocalHost(folder / "host", device=CPU))
    return ModelVersion(name="segmentation", version="v1", weights=result.weights, card=result.card), result


@pytest.fixture(scope="module")
def parent(pairs, tmp_path_factory):
    grid = {key: SMALL[key] for key in GRID}
    return train(pairs, tmp_path_factory.mktemp("parent"), None, max_epochs=12, learning_rate=0.01, **grid)[0]


def test_a_version_says_for_how_many_images_it_was_designed_and_a_fine_tuned_one_inherits_that(parent, pairs, tmp_path):
    assert parent.designed_for == len(pairs) == 8
    tuned, _ = train(pairs[:6], tmp_path, parent, max_epochs=1)
    assert tuned.card["plan"]["from"] == "v1"
    assert tuned.designed_for == 8


def test_fine_tuning_is_gentler_than_training_from_scratch_unless_the_request_says_how_fast(parent, pairs, tmp_path):
    rates = [
        train(pairs, tmp_path / str(n), of, max_epochs=1, **params)[0].card["config"]["learning_rate"]
        for n, (of, params) in enumerate([(None, {}), (parent, {}), (parent, {"learning_rate": 0.004})])
    ]
    assert rates[1] == rates[0] / 4
    assert rates[2] == 0.004


def test_a_training_that_only_makes_it_worse_ends_with_the_parent_it_started_from(parent, pairs, tmp_path):
    tuned, result = train(pairs, tmp_path, parent, max_epochs=2, learning_rate=0.5)
    assert tuned.card["trained"]["best_epoch"] == 0
    assert result.metric == result.baseline
    before, after = load_file(parent.weights), load_file(tuned.weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_designed_for_few_images_is_designed_anew_when_they_have_doubled(parent, pairs, tmp_path):
    card = {**parent.card, "spacing": [1.8, 1.8, 1.8], "plan": {**parent.card["plan"], "images": 4}}
    result = train(pairs, tmp_path, dataclasses.replace(parent, card=card), max_epochs=1)[0]
    assert "8 images are labelled instead of 4, and finer voxels are possible" in result.card["plan"]["start"]
    assert "from" not in result.card["plan"]
    assert result.designed_for == 8
