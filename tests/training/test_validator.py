"""While a network learns, a large image is validated by the same few windows each time, and a small one as a whole."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import Cases, case_of
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.design import Design
from rayapp.training.local_host import LocalHost
from rayapp.training.options import ClickOptions, Options
from rayapp.training.validator import WINDOWS, Validator
from tests.training.blobs import LABELS, NETWORK

CPU = torch.device("cpu")


def labelled(shape):
    labels = np.zeros(shape, np.uint8)
    labels[3:9, 3:9, 3:9] = 1
    labels[-9:-4, -8:-3, -7:-2] = 2
    return labels


def validation(shape, *, task=None, stop=lambda: False):
    task = task or BasicTrainTask(labels=LABELS, description="", options=Options())
    network = {**NETWORK, "in_channels": 1, "out_channels": 3}
    design = Design(labels=LABELS, spacing=1.0, roi_size=(16, 16, 16), network=network, channels=1)
    read = []

    def case(number):
        read.append(number)
        labels = labelled(shape)
        return case_of(labels[None].astype(np.float32), labels, structures=2)

    cases = Cases(range(2), case, capacity=0)
    host = LocalHost(Path("unused"), device=CPU, stop=stop)
    return Validator(task, design, task.options, host, cases=cases, count=2), read


class Perfect:
    """A network that reads the labels off the image, and notes what it saw."""

    def __init__(self):
        self.seen = []

    def predict(self, images):
        self.seen.append(images.clone())
        values = images[:, :1].round()
        return torch.cat([-(values - value).abs() for value in range(3)], 1)


def test_a_large_image_is_validated_by_the_same_windows_each_time_and_read_once():
    checked, read = validation((90, 70, 60))
    one, other = Perfect(), Perfect()
    assert checked.metrics(one) == checked.metrics(other) == {"dice": {"mean": 1.0, "ball": 1.0, "rod": 1.0}}
    assert read == [0, 1]
    assert len(one.seen) == 2 * WINDOWS
    assert all(images.shape[2:] == (16, 16, 16) for images in one.seen)
    assert all(torch.equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))
    assert any((images == 1).any() for images in one.seen)
    assert any((images == 2).any() for images in one.seen)


def test_a_small_image_is_validated_as_a_whole():
    checked, _ = validation((30, 25, 20))
    network = Perfect()
    assert checked.metrics(network)["dice"]["mean"] == 1.0
    assert sum(len(images) for images in network.seen) > 2
    covered = sum(int((images == 1).sum()) for images in network.seen)
    assert covered >= 2 * 6**3


def test_networks_that_see_whole_images_are_validated_on_these():
    task = DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions(val_clicks=1))
    checked, _ = validation((60, 60, 60), task=task)
    shown = []

    def predict(images):
        shown.append(images[:, :1].numel())
        return torch.zeros(len(images), 3, *images.shape[2:])

    checked.metrics(SimpleNamespace(predict=predict))
    assert sum(shown) >= 2 * 2 * 60**3  # two images, without clicks and after one


@pytest.mark.parametrize("after", [0, 1])
def test_a_validation_stops_before_the_next_image(after):
    asked = []
    checked, read = validation((30, 25, 20), stop=lambda: asked.append(0) or len(asked) > after)
    assert checked.metrics(Perfect()) is None
    assert len(read) == after
