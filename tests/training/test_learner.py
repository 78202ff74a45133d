"""A learner says when it diverges, and takes its schedule up where it was when the number of steps has changed."""

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.design import Design
from rayapp.training.feed import Batch
from rayapp.training.learner import Learner
from rayapp.training.local_host import LocalHost
from rayapp.training.options import Options
from tests.training.blobs import LABELS, NETWORK


def learner(tmp_path, steps, task=BasicTrainTask):
    design = Design(
        labels=LABELS,
        spacing=1,
        roi_size=(8, 8, 8),
        network={**NETWORK, "in_channels": 1, "out_channels": 3},
        channels=1,
    )
    made = task(labels=LABELS, description="", options=Options())
    return Learner(made, design, made.options, LocalHost(tmp_path, device=torch.device("cpu")), steps=steps)


def batch():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, (2, 8, 8, 8)).astype(np.uint8))
    return Batch(images=torch.from_numpy(rng.random((2, 1, 8, 8, 8), dtype=np.float32)), labels=labels)


def test_a_schedule_goes_on_from_the_same_share_of_its_way(tmp_path):
    before = learner(tmp_path, steps=12)
    for number in range(8):
        before.step([batch()], number)
    after = learner(tmp_path, steps=24)
    after.restore(before.state())
    assert after.rate == pytest.approx(before.rate)
    whole = learner(tmp_path, steps=24)
    for number in range(17):
        whole.step([batch()], number)
    after.step([batch()], 16)
    assert after.rate == pytest.approx(whole.rate)


class Diverging(BasicTrainTask):
    """Its loss is no number."""

    def loss(self):
        return lambda logits, labels: logits.sum() * labels.sum() * float("nan")


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_weights(tmp_path):
    lost = learner(tmp_path, steps=4, task=Diverging)
    before = lost.weights()
    with pytest.raises(BadRequest, match="learning_rate"):
        lost.step([batch()], 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lost.weights().items())
