"""The network for any structure learns from labels, measured by clicks as it serves."""

import itertools
import json

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.models.networks import load_weights, save_weights
from rayapp.models.promptable import Promptable
from rayapp.models.store import ModelVersion
from rayapp.training import promptable_train
from rayapp.training.local_host import LocalHost
from rayapp.training.options import PromptableOptions
from rayapp.training.promptable_train import Lessons, PromptableTrainTask, one_part
from rayapp.training.train_task import TrainRequest
from tests.training.blobs import blob, write_pair, write_pairs

NETWORK = {"name": "Promptable", "dimensions": 3, "widths": [8, 8, 8, 8], "tail": 8}
CARD = {"labels": {}, "network": NETWORK, "description": "any structure", "license": "Apache-2.0"}


class Scratch:
    """Remembers that it was asked."""

    def train(self, request, host):
        return "from scratch"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(promptable_train, "STEPS", 2)
    monkeypatch.setattr(promptable_train, "EDGES", (32,))
    monkeypatch.setattr(promptable_train, "CLICKS", 2)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    torch.manual_seed(0)
    made = Promptable(3, NETWORK["widths"], NETWORK["tail"])
    path = tmp_path_factory.mktemp("shipped") / "deepgrow_3d.safetensors"
    save_weights(made, path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 4)


@pytest.fixture
def task(shipped):
    return PromptableTrainTask(shipped=shipped, card=CARD, scratch=Scratch(), options=PromptableOptions(max_epochs=2))


def request(tmp_path, pairs, **given):
    return TrainRequest(model="deepgrow_3d", pairs=pairs, folder=tmp_path / "run", **given)


def host(tmp_path, **given):
    return LocalHost(tmp_path / "kept", device=torch.device("cpu"), **given)


def weights(path):
    network = Promptable(3, NETWORK["widths"], NETWORK["tail"])
    load_weights(network, path)
    return network.state_dict()


def test_it_goes_on_from_the_weights_that_ship_and_is_measured_beside_them(task, shipped, pairs, tmp_path):
    production = ModelVersion(name="deepgrow_3d", version="v1", weights=shipped, card=CARD)
    told = []
    asked = request(tmp_path, pairs, baseline=production)
    result = task.train(asked, host(tmp_path, on_progress=told.append))
    assert [progress.iteration for progress in told if progress.metric is None] == [1, 2]
    assert told[-1].epoch == told[-1].epochs == 2
    assert result.card["network"] == NETWORK
    assert result.card["trained"]["from"] == "shipped"
    assert set(result.card["metrics"]) == {"dice_after_one_click", "dice_after_clicks"}
    assert 0 <= result.metric <= 1
    assert 0 <= result.baseline <= 1
    before, after = weights(shipped), weights(result.weights)
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 0.1
    assert (asked.folder / "curves.png").stat().st_size > 0
    assert json.loads((asked.folder / "stats.json").read_text())["total_iterations"] == 4


def test_a_stopped_run_goes_on_from_its_last_epoch(task, pairs, tmp_path):
    told = []
    end = host(tmp_path, on_progress=told.append, stop=lambda: len(told) >= 4)
    assert task.train(request(tmp_path, pairs), end) is None
    result = task.train(request(tmp_path, pairs), host(tmp_path))
    assert result.card["trained"]["iterations"] == 4
    assert result.card["trained"]["resumed"] == 1


def test_it_goes_on_from_a_version_of_its_own_kind_alone(task, pairs, tmp_path, shipped):
    own = ModelVersion(name="deepgrow_3d", version="v7", weights=shipped, card=CARD)
    other = ModelVersion(name="deepgrow_3d", version="v3", weights=shipped, card={"network": {"name": "UNet"}})
    for parent, start in ((own, "v7"), (other, "shipped")):
        assert task._parent(request(tmp_path, pairs, parent=parent)).version == start


def test_without_weights_to_go_on_from_the_network_of_the_paper_is_trained(task, pairs, tmp_path):
    assert task.train(request(tmp_path, pairs, params={"pretrained": False}), host(tmp_path)) == "from scratch"


@pytest.mark.parametrize("params", [{"max_epochs": 0}, {"scenes": 2}, {"learning_rate": "fast"}, {"val_split": 1}])
def test_an_option_that_cannot_be_is_refused_by_name(task, pairs, tmp_path, params):
    with pytest.raises(BadRequest, match=next(iter(params))):
        task.train(request(tmp_path, pairs, params=params), host(tmp_path))


def test_one_labelled_image_is_too_few(task, pairs, tmp_path):
    with pytest.raises(BadRequest, match="at least two"):
        task.train(request(tmp_path, pairs[:1]), host(tmp_path))


def test_lessons_are_of_labels_and_of_random_scenes(pairs):
    lessons = Lessons(pairs, 0.0, np.random.default_rng(0))
    spacings = {tuple(np.round(made.spacing, 6)) for made in itertools.islice(lessons, 24)}
    assert len(spacings) == 4  # those of the images alone
    mixed = Lessons(pairs, 0.5, np.random.default_rng(0))
    assert len({tuple(np.round(made.spacing, 6)) for made in itertools.islice(mixed, 24)} - spacings) >= 1


def test_images_without_structures_are_passed_over_and_must_not_be_all(tmp_path, pairs):
    volume, labels = blob(9)
    empty = write_pair(tmp_path, "empty", volume, np.zeros_like(labels))
    assert len(list(itertools.islice(Lessons([empty, pairs[0]], 0.0, np.random.default_rng(0)), 20))) == 20
    with pytest.raises(BadRequest, match="labelled structure"):
        next(iter(Lessons([empty], 0.0, np.random.default_rng(0))))


def test_a_structure_in_pieces_is_learnt_piece_by_piece():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:6, 2:6, 2:6] = mask[12:17, 12:17, 12:17] = mask[18, 18, 18] = True
    sizes = {int(one_part(np.random.default_rng(seed), mask).sum()) for seed in range(20)}
    assert sizes == {64, 125}
    mask[2:6, 2:6, 2:6] = False
    assert one_part(np.random.default_rng(0), mask).sum() == 126
